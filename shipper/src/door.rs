//! Who may come in: sockets, TLS, how many connections there are, and the admin pages.

pub mod admin;
pub mod admission;
pub mod gate;
pub mod intake;
pub mod listeners;
pub mod tls;
