//! Work that waits for the disk, on threads of its own.

/// Runs what waits for the disk on a blocking thread; `None` if it panicked, which is said.
pub(crate) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    match tokio::task::spawn_blocking(job).await {
        Ok(result) => Some(result),
        Err(error) => {
            tracing::error!(%error, "a task on the disk has failed");
            None
        }
    }
}
