//! Who a call is of, before anything of it is read.
//!
//! Token, certificate and user are known when a call's headers are: a stranger's call is refused then,
//! and what it sends besides is thrown away as it comes. Of a call that is admitted, messages are taken
//! in within bounds ([`Intake`]).

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use proto::limits::{CHECK_BYTES_MAX, MESSAGE_BYTES_MAX};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

use crate::call::shared::Shared;
use crate::door::intake::{Intake, Messages, Room};

/// The method whose call is one message.
const CHECK_PATH: &str = "/relay.v1.Relay/Check";

/// A service that sees only calls that were admitted.
#[derive(Debug, Clone)]
pub struct Admission<S> {
    service: S,
    shared: Arc<Shared>,
    room: Room,
}

impl<S> Admission<S> {
    /// Stands before a service; `room` is that of the process.
    pub fn new(service: S, shared: Arc<Shared>, room: Room) -> Self {
        Self {
            service,
            shared,
            room,
        }
    }
}

impl<S: NamedService> NamedService for Admission<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Admission<S>
where
    S: Service<
            http::Request<Intake<Body>>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future = BoxFuture<http::Response<Body>, Infallible>,
        >,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let caller = match self.shared.admit(&parts.headers, &parts.extensions) {
            Ok(caller) => caller,
            Err(status) => return Box::pin(std::future::ready(Ok(status.into_http()))),
        };
        let messages = if parts.uri.path() == CHECK_PATH {
            Messages::One(CHECK_BYTES_MAX)
        } else {
            Messages::Many(MESSAGE_BYTES_MAX)
        };
        let unread = caller.arrival.unread.clone();
        let body = Intake::new(body, messages, unread, self.room.clone());
        parts.extensions.insert(caller);
        self.service.call(http::Request::from_parts(parts, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::relay::relay_server::SERVICE_NAME;

    #[test]
    fn the_path_of_a_check_is_that_of_the_service() {
        assert_eq!(CHECK_PATH, format!("/{SERVICE_NAME}/Check"));
    }
}
