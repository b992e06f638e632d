//! What a stream that is opened asks for, and what of it can't work.

use proto::relay::Open;

use crate::call::shared::{Policy, Shared, cut};
use crate::lane::queue::LaneKey;
use crate::record::{Formatter, Origin};
use crate::rules::effective::Subject;
use crate::rules::fallback;
use crate::rules::tenant::Host;

/// What a container's options come to.
pub(super) struct Understood {
    pub(super) key: LaneKey,
    pub(super) formatter: Formatter,
    /// What is wrong with those that are left out.
    pub(super) left_out: Vec<String>,
}

/// Returns what a container's options and the rules for it come to, without those that can't work.
///
/// # Errors
/// The faults that keep its lines on the host.
pub(super) fn understand(
    policy: &Policy,
    tenant: &str,
    open: &Open,
) -> Result<Understood, Vec<String>> {
    let container = open.container.clone().unwrap_or_default();
    let subject = Subject {
        tenant,
        host: &open.host,
        container: &container,
    };
    let effective = policy.rules.apply(subject, &open.log_opts);
    let mut log_opts = effective.log_opts.clone();
    let mut left_out: Vec<String> = Vec::new();
    loop {
        let reason = cut(&left_out.join("; "));
        let origin = Origin {
            container: &container,
            host: &open.host,
            journal_id: &open.journal_id,
            resume_offset: open.resume_offset,
            left_out: &reason,
        };
        let understood = policy.router.route(&log_opts).and_then(|(opts, key)| {
            let formatter = Formatter::new(&opts, &origin).map_err(|error| error.faults)?;
            Ok((key, formatter))
        });
        let faults = match understood {
            Ok((key, formatter)) => {
                return Ok(Understood {
                    key,
                    formatter,
                    left_out,
                });
            }
            Err(faults) => effective.named(faults),
        };
        // Each time there are fewer.
        if !fallback::leave_out(&mut log_opts, &faults) {
            left_out.extend(faults);
            return Err(left_out);
        }
        left_out.extend(faults);
    }
}

/// Which stream it is that is opened, for messages.
pub(super) struct Opening {
    host: String,
    container: String,
    journal_id: String,
}

impl Opening {
    pub(super) fn of(open: &Open) -> Self {
        let container = open.container.as_ref();
        let name = container.map_or("", |container| container.name.trim_start_matches('/'));
        Self {
            host: open.host.clone(),
            container: cut(name),
            journal_id: open.journal_id.clone(),
        }
    }

    /// Returns the faults with whose they are.
    pub(super) fn named(&self, faults: &[String]) -> String {
        let (host, container) = (&self.host, &self.container);
        format!("host {host}, container {container}: {}", faults.join("; "))
    }

    /// Shows in the ledger what is wrong; nothing, if there are no faults.
    pub(super) fn note(&self, shared: &Shared, host: &Host, faults: &[String]) {
        let note = cut(&faults.join("; "));
        shared.ledger.note(host.tenant(), &self.journal_id, note);
    }
}
