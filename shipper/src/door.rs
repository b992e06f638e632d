//! Who may come in: sockets, TLS, how many connections there are, and the admin pages.

pub mod admin;
pub mod gate;
pub mod listeners;
pub mod tls;
