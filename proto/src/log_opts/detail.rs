//! The details of a container that `append_container_details_keys` names.

/// A detail of the container that `append_container_details_keys` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum ContainerDetail {
    ContainerId,
    ContainerName,
    ContainerImageId,
    ContainerImageName,
    ContainerCreated,
    ContainerEnv,
    ContainerLabels,
    ContainerEntrypoint,
    ContainerArgs,
    LogPath,
    DaemonName,
    Config,
}

impl ContainerDetail {
    /// All details, in the order of [`Self::NAMES`].
    pub const ALL: [Self; 12] = [
        Self::ContainerId,
        Self::ContainerName,
        Self::ContainerImageId,
        Self::ContainerImageName,
        Self::ContainerCreated,
        Self::ContainerEnv,
        Self::ContainerLabels,
        Self::ContainerEntrypoint,
        Self::ContainerArgs,
        Self::LogPath,
        Self::DaemonName,
        Self::Config,
    ];

    /// The names, as the option has them.
    pub const NAMES: &[&str] = &[
        "container_id",
        "container_name",
        "container_image_id",
        "container_image_name",
        "container_created",
        "container_env",
        "container_labels",
        "container_entrypoint",
        "container_args",
        "log_path",
        "daemon_name",
        "config",
    ];

    /// Returns the name, as the option and the field have it.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .zip(Self::NAMES)
            .find_map(|(detail, name)| (*detail == self).then_some(*name))
            .unwrap_or_default()
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|detail| detail.name() == name)
    }
}
