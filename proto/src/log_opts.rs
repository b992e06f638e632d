//! Every log option: one table ([`OPTIONS`]), parsed once into [`LogOpts`].
//!
//! Both processes parse the same options with the same code. The driver checks here all that can
//! be checked without the network, regular expressions among it; what is carried as text (the Go
//! template `tag`, names of topics and credentials) the shipper checks through `Relay.Check`.
//!
//! Rules that hold for all options:
//! - All faults of a container are reported together. Each names option, value and rule; of an
//!   unknown option it names the nearest known one.
//! - An empty value is as good as none. Docker merges the daemon's defaults into a container's
//!   options, so this is how a container gets rid of one.
//! - Booleans, durations and sizes are written as Go and Docker write them.
//! - `secret_id` and `secret_key` appear in no fault and in no `Debug` text, nor does the value of
//!   an unknown option: it may be a misspelt secret.
//! - A value has at most [`VALUE_BYTES_MAX`] bytes.

mod asked;
mod detail;
mod fault;
mod masks;
mod opts;
mod reader;
mod secret;
mod syntax;
mod table;
mod template;
#[cfg(test)]
mod tests;
mod value;

pub use detail::ContainerDetail;
pub use fault::{LogOptsError, fault, go_regex_rule, unknown_tag_rule};
pub use masks::MASKS;
pub use opts::{Attributes, Credentials, JOURNAL_BYTES_MIN, LogOpts, Mode, Multiline, Parse};
pub use reader::VALUE_BYTES_MAX;
pub use secret::{MASK, Secret};
pub use table::{Consumer, Kind, OPTIONS, OptionSpec, find};
pub use template::{Piece, TAGS, Template};
