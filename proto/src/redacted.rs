//! `Debug` of the messages that carry log options and a container's details. Log options hold
//! secrets, environment and arguments often do: they are counted, not shown.

use std::fmt;

use crate::relay::{CheckRequest, Container, Open};

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("stream", &self.stream)
            .field("journal_id", &self.journal_id)
            .field("container", &self.container.as_ref().map(name))
            .field("log_opts_count", &self.log_opts.len())
            .field("host", &self.host)
            .field("resume_offset", &self.resume_offset)
            .finish()
    }
}

impl fmt::Debug for CheckRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckRequest")
            .field("container", &self.container.as_ref().map(name))
            .field("log_opts_count", &self.log_opts.len())
            .field("host", &self.host)
            .finish()
    }
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("image_name", &self.image_name)
            .field("env_count", &self.env.len())
            .field("labels_count", &self.labels.len())
            .field("args_count", &self.args.len())
            .finish_non_exhaustive()
    }
}

fn name(container: &Container) -> &str {
    &container.name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_shown() {
        let log_opts = [("secret_key".to_owned(), "k3y".to_owned())];
        let container = Container {
            name: "/web".into(),
            env: vec!["PASSWORD=k3y".into()],
            entrypoint: "k3y".into(),
            args: vec!["k3y".into()],
            labels: [("token".to_owned(), "k3y".to_owned())].into(),
            ..Container::default()
        };
        let shown = format!("{container:?}");
        assert!(!shown.contains("k3y"), "{shown}");
        assert!(
            shown.contains("/web") && shown.contains("env_count: 1"),
            "{shown}"
        );
        let open = Open {
            stream: 7,
            container: Some(container.clone()),
            log_opts: log_opts.clone().into(),
            ..Open::default()
        };
        let check = CheckRequest {
            container: Some(container),
            log_opts: log_opts.into(),
            host: "node-1".into(),
        };
        for shown in [format!("{open:?}"), format!("{check:?}")] {
            assert!(!shown.contains("k3y"), "{shown}");
            assert!(
                shown.contains("/web") && shown.contains("log_opts_count: 1"),
                "{shown}"
            );
        }
    }
}
