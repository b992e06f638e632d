//! What StartLogging says, checked: the FIFO, the options that concern the driver, and what the
//! shipper is told of the container. Pure but for random ids and one look at the FIFO's age.

use super::error::StartError;
use crate::table::{META_VERSION, Meta, new_journal_id};
use prost::Message as _;
use proto::limits::OPEN_BYTES_MAX;
use proto::log_opts::{Credentials, LogOpts, Mode};
use proto::relay;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::fmt;
use std::time::UNIX_EPOCH;

/// Age of a container up to which a definite no of the shipper fails its start.
const JUST_CREATED_SECONDS: i64 = 60;

/// What StartLogging says.
#[derive(Deserialize)]
pub(crate) struct StartRequest {
    #[serde(rename = "File", default)]
    file: String,
    #[serde(rename = "Info")]
    info: Box<RawValue>,
}

/// What the engine says of a container (moby `daemon/logger/loginfo.go`). Any field may be null.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Info {
    config: Option<HashMap<String, String>>,
    #[serde(rename = "ContainerID")]
    container_id: String,
    container_name: String,
    container_entrypoint: String,
    container_args: Option<Vec<String>>,
    #[serde(rename = "ContainerImageID")]
    container_image_id: String,
    container_image_name: String,
    container_created: String,
    container_env: Option<Vec<String>>,
    container_labels: Option<HashMap<String, String>>,
    log_path: String,
    daemon_name: String,
}

/// The options that concern the driver.
#[derive(Debug, Clone)]
pub(crate) struct StreamOptions {
    pub(crate) no_file: bool,
    pub(crate) keep_file: bool,
    pub(crate) journal_bytes_max: Option<u64>,
    pub(crate) mode: Mode,
}

impl From<LogOpts> for StreamOptions {
    fn from(options: LogOpts) -> Self {
        Self {
            no_file: options.no_file,
            keep_file: options.keep_file,
            journal_bytes_max: options.journal_bytes_max,
            mode: options.mode,
        }
    }
}

/// A start, checked.
pub(crate) struct Start {
    pub(crate) file: String,
    pub(crate) info: Box<RawValue>,
    pub(crate) container_id: String,
    pub(crate) created: String,
    pub(crate) options: StreamOptions,
    pub(crate) open: relay::Open,
    /// An earlier process has accepted it.
    pub(crate) is_adopted: bool,
}

/// Shows which container it is, and nothing of `Info`: log options hold keys, environment and
/// arguments often do.
impl fmt::Debug for StartRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartRequest")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Info")
            .field("container_id", &self.container_id)
            .field("container_name", &self.container_name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start")
            .field("file", &self.file)
            .field("container_id", &self.container_id)
            .field("options", &self.options)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Start {
    pub(crate) fn check(request: StartRequest, host_name: &str) -> Result<Self, StartError> {
        let StartRequest { file, info } = request;
        let parsed: Info = serde_json::from_str(info.get())?;
        let config = parsed.config.clone().unwrap_or_default();
        let options = LogOpts::parse(&config)?;
        if matches!(options.credentials, Credentials::Inline { .. }) {
            tracing::warn!(
                container = parsed.container_id,
                "docker inspect shows the log options secret_id and secret_key: use credentials, and \
                 keep keys in the shipper"
            );
        }
        Self::build(
            file,
            info,
            parsed,
            options.into(),
            new_journal_id(),
            host_name,
        )
    }

    /// Restores a start that was accepted before. Options that a newer version would refuse don't
    /// cost the container its logs.
    pub(crate) fn from_meta(meta: Meta, host_name: &str) -> Result<Self, StartError> {
        let parsed: Info = serde_json::from_str(meta.info.get())?;
        let config = parsed.config.clone().unwrap_or_default();
        let options = match LogOpts::parse(&config) {
            Ok(options) => options.into(),
            Err(error) => {
                tracing::warn!(
                    %error,
                    container = parsed.container_id,
                    "log options that were once accepted are bad"
                );
                StreamOptions {
                    no_file: false,
                    keep_file: true,
                    journal_bytes_max: None,
                    mode: Mode::default(),
                }
            }
        };
        let start = Self::build(
            meta.file,
            meta.info,
            parsed,
            options,
            meta.journal_id,
            host_name,
        )?;
        Ok(Self {
            is_adopted: true,
            ..start
        })
    }

    fn build(
        file: String,
        info: Box<RawValue>,
        parsed: Info,
        options: StreamOptions,
        journal_id: String,
        host_name: &str,
    ) -> Result<Self, StartError> {
        if !file.starts_with('/') {
            return Err(StartError::Field {
                field: "File",
                value: file,
                rule: "an absolute path",
            });
        }
        if parsed.container_id.is_empty() {
            return Err(StartError::Field {
                field: "Info.ContainerID",
                value: parsed.container_id,
                rule: "a container's id",
            });
        }
        let container_id = parsed.container_id.clone();
        let created = parsed.container_created.clone();
        let open = open_message(parsed, journal_id, host_name);
        let bytes = open.encoded_len();
        if bytes > OPEN_BYTES_MAX {
            return Err(StartError::TooLarge { bytes });
        }
        Ok(Self {
            file,
            info,
            container_id,
            created,
            options,
            open,
            is_adopted: false,
        })
    }

    pub(crate) fn meta(&self) -> Meta {
        Meta {
            version: META_VERSION,
            journal_id: self.open.journal_id.clone(),
            file: self.file.clone(),
            info: self.info.clone(),
        }
    }

    /// Compares the container's age with that of its FIFO, which the engine made just now, by the
    /// engine's clock.
    pub(crate) fn is_just_created(&self) -> bool {
        let Ok(stat) = rustix::fs::stat(&self.file) else {
            return false;
        };
        unix_seconds(&self.created)
            .is_some_and(|created| stat.st_ctime.saturating_sub(created) <= JUST_CREATED_SECONDS)
    }
}

/// Says of a container what its options ask for, and no more: its environment is full of
/// passwords.
fn open_message(info: Info, journal_id: String, host_name: &str) -> relay::Open {
    let log_opts = info.config.unwrap_or_default();
    let mut container = relay::Container {
        id: info.container_id,
        name: info.container_name,
        image_id: info.container_image_id,
        image_name: info.container_image_name,
        created: info.container_created,
        env: info.container_env.unwrap_or_default(),
        labels: info.container_labels.unwrap_or_default(),
        entrypoint: info.container_entrypoint,
        args: info.container_args.unwrap_or_default(),
        daemon_name: info.daemon_name,
        log_path: info.log_path,
    };
    // Options that are not understood ask for nothing; the shipper will refuse them.
    LogOpts::parse(&log_opts)
        .unwrap_or_default()
        .keep_asked(&mut container);
    relay::Open {
        stream: 0,
        journal_id,
        container: Some(container),
        log_opts,
        host: host_name.to_owned(),
        resume_offset: 0,
    }
}

/// Parses the seconds of an RFC 3339 time in UTC, as the engine writes it.
fn unix_seconds(time: &str) -> Option<i64> {
    let since = humantime::parse_rfc3339(time)
        .ok()?
        .duration_since(UNIX_EPOCH)
        .ok()?;
    i64::try_from(since.as_secs()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_3339_seconds_are_unix_seconds() {
        for (time, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:00:00.5Z", Some(951_825_600)),
            ("2026-11-22T14:04:26.820587421Z", Some(1_795_356_266)),
            ("2100-03-01T00:00:00Z", Some(4_107_542_400)),
            ("2026-11-22T14:04:26+08:00", None),
            ("2026-13-22T14:04:26Z", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(unix_seconds(time), expected, "{time:?}");
        }
    }

    #[test]
    fn nothing_that_may_be_a_secret_is_shown() {
        let info = r#"{"ContainerID": "c1", "Config": {"secret_id": "AKIDEXAMPLE",
            "secret_key": "SKEXAMPLE"}, "ContainerEnv": ["PASSWORD=SKEXAMPLE"],
            "ContainerArgs": ["SKEXAMPLE"], "ContainerEntrypoint": "SKEXAMPLE"}"#;
        let text = format!(r#"{{"File": "/f", "Info": {info}}}"#);
        let request: StartRequest = serde_json::from_str(&text).unwrap();
        let parsed: Info = serde_json::from_str(info).unwrap();
        let mut shown = format!("{request:?}\n{parsed:?}");
        let meta = Meta {
            version: META_VERSION,
            journal_id: new_journal_id(),
            file: request.file.clone(),
            info: request.info.clone(),
        };
        let start = Start::check(request, "host").unwrap();
        shown.push_str(&format!("\n{meta:?}\n{start:?}"));
        assert!(!shown.contains("EXAMPLE"), "{shown}");
        assert!(shown.matches("/f").count() == 3, "{shown}");
    }

    fn open_with(log_opts: &[(&str, &str)]) -> relay::Container {
        let info = Info {
            config: Some(
                log_opts
                    .iter()
                    .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
            ),
            container_env: Some(vec![
                "FOO=bar".into(),
                "PASSWORD=x=y".into(),
                "EMPTY".into(),
            ]),
            container_labels: Some(HashMap::from([
                ("a".into(), "1".into()),
                ("secret".into(), "2".into()),
            ])),
            ..Info::default()
        };
        open_message(info, new_journal_id(), "host")
            .container
            .unwrap()
    }

    #[test]
    fn no_environment_or_label_leaves_the_host_unasked() {
        for quiet in [
            vec![],
            vec![("env", "OTHER"), ("labels", "A, a"), ("tag", "{{.Name}}")],
        ] {
            let container = open_with(&quiet);
            assert_eq!(
                (container.env.len(), container.labels.len()),
                (0, 0),
                "{quiet:?}"
            );
        }
        let container = open_with(&[("env", "EMPTY,FOO"), ("labels", "a")]);
        // Docker ignores what has no value (moby: daemon/logger/loginfo.go).
        assert_eq!(container.env, ["FOO=bar"]);
        assert_eq!(container.labels, HashMap::from([("a".into(), "1".into())]));
        for all in [
            [("env-regex", "."), ("labels-regex", ".")],
            [
                (
                    "append_container_details_keys",
                    "container_id, container_env ,container_labels",
                ),
                ("env", ""),
            ],
            [
                ("tag", "{{.ContainerEnv}}{{.ContainerLabels}}"),
                ("env", ""),
            ],
        ] {
            let container = open_with(&all);
            assert_eq!(
                (container.env.len(), container.labels.len()),
                (3, 2),
                "{all:?}"
            );
        }
    }
}
