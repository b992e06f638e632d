//! Which details of a container its options ask for. The driver sends no others: environment,
//! labels and arguments often hold secrets, so they leave the host only when someone asked. The names that
//! Compose and Swarm give services are sent always: the shipper's rules go by them.

use super::detail::ContainerDetail;
use super::opts::LogOpts;
use crate::relay::Container;

/// Labels that say which service a container is of.
const SERVICE_LABELS: [&str; 4] = [
    "com.docker.compose.project",
    "com.docker.compose.service",
    "com.docker.swarm.service.name",
    "com.docker.stack.namespace",
];

impl LogOpts {
    /// Removes from a container's environment, labels, entry point and arguments what no option
    /// asks for, but for the names of services.
    ///
    /// A list of names keeps those; a regular expression keeps all, because only the shipper
    /// evaluates it, and so do `container_env`, `container_labels` and a `tag` that names the
    /// whole.
    pub fn keep_asked(&self, container: &mut Container) {
        let attributes = &self.attributes;
        let all_env = attributes.env_regex.is_some()
            || self.asks(ContainerDetail::ContainerEnv, ".ContainerEnv");
        if !all_env {
            container
                .env
                .retain(|variable| match variable.split_once('=') {
                    Some((name, _)) => attributes.env.iter().any(|asked| asked == name),
                    None => false,
                });
        }
        let all_labels = attributes.labels_regex.is_some()
            || self.asks(ContainerDetail::ContainerLabels, ".ContainerLabels");
        if !all_labels {
            container.labels.retain(|name, _| {
                attributes.labels.contains(name) || SERVICE_LABELS.contains(&name.as_str())
            });
        }
        let is_command = self.tag_has(".Command");
        if !is_command && !self.asks(ContainerDetail::ContainerEntrypoint, ".ContainerEntrypoint") {
            container.entrypoint.clear();
        }
        if !is_command && !self.asks(ContainerDetail::ContainerArgs, ".ContainerArgs") {
            container.args.clear();
        }
    }

    fn asks(&self, detail: ContainerDetail, tag_field: &str) -> bool {
        self.container_details.contains(&detail) || self.tag_has(tag_field)
    }

    /// Whether the `tag` may name a field. Finding it in the text is enough: too much data in the
    /// odd case is better than a wrong tag.
    fn tag_has(&self, field: &str) -> bool {
        let tag = self.attributes.tag.as_deref();
        tag.is_some_and(|tag| tag.contains(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn check(options: &[(&str, &str)], expected: &str) {
        let config: HashMap<String, String> = options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut container = Container {
            id: "id".into(),
            env: ["A=1", "B=2", "A=3", "EMPTY=", "NO_VALUE", "AB=4"]
                .map(str::to_owned)
                .to_vec(),
            labels: [
                ("a", "1"),
                ("a.b", "2"),
                ("com.docker.compose.config-hash", "3"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            entrypoint: "sh".into(),
            args: vec!["-c".into()],
            ..Container::default()
        };
        LogOpts::parse(&config).unwrap().keep_asked(&mut container);
        let mut labels: Vec<_> = container.labels.into_keys().collect();
        labels.sort();
        let left = format!(
            "{} | {} | {} | {}",
            container.env.join(" "),
            labels.join(" "),
            container.entrypoint,
            container.args.join(" ")
        );
        assert_eq!(left, expected, "{options:?}");
        assert_eq!(container.id, "id");
    }

    #[test]
    fn the_names_of_services_are_kept() {
        let labels = SERVICE_LABELS
            .iter()
            .chain(&["com.docker.compose.project.working_dir"]);
        let mut container = Container {
            labels: labels
                .map(|name| ((*name).to_owned(), "x".to_owned()))
                .collect(),
            ..Container::default()
        };
        LogOpts::default().keep_asked(&mut container);
        let mut left: Vec<_> = container.labels.into_keys().collect();
        left.sort();
        let mut expected = SERVICE_LABELS.to_vec();
        expected.sort_unstable();
        assert_eq!(left, expected);
    }

    #[test]
    fn only_what_an_option_asks_for_is_kept() {
        const ALL_ENV: &str = "A=1 B=2 A=3 EMPTY= NO_VALUE AB=4";
        check(&[], " |  |  | ");
        check(&[("env", "A")], "A=1 A=3 |  |  | ");
        check(&[("env", "A,EMPTY,NO_VALUE")], "A=1 A=3 EMPTY= |  |  | ");
        check(&[("env", "A, B")], "A=1 A=3 |  |  | ");
        check(&[("labels", "a")], " | a |  | ");
        check(&[("labels", "x,a.b")], " | a.b |  | ");
        check(&[("env-regex", "^B")], &format!("{ALL_ENV} |  |  | "));
        let all_labels = "a a.b com.docker.compose.config-hash";
        check(&[("labels-regex", "^b")], &format!(" | {all_labels} |  | "));
        let details = |keys| [("append_container_details_keys", keys)];
        check(&details("container_env"), &format!("{ALL_ENV} |  |  | "));
        check(
            &details("container_labels"),
            &format!(" | {all_labels} |  | "),
        );
        check(&details("container_args"), " |  |  | -c");
        check(&details("container_entrypoint"), " |  | sh | ");
        check(&details("config,container_id"), " |  |  | ");
        check(&[("tag", "{{.Command}}")], " |  | sh | -c");
        check(
            &[("tag", "{{index .ContainerLabels \"a\"}}")],
            &format!(" | {all_labels} |  | "),
        );
        check(&[("tag", "{{.Name}}")], " |  |  | ");
    }
}
