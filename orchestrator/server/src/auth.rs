//! Every call carries the token.

use crate::secret::Secret;
use tonic::{Request, Status, service::Interceptor};

/// Refuses calls without the right `authorization: Bearer TOKEN`.
#[derive(Clone, Debug)]
pub(crate) struct TokenCheck(Secret);

impl TokenCheck {
    pub fn new(token: Secret) -> Self {
        Self(token)
    }
}

impl Interceptor for TokenCheck {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        const WHERE: &str =
            "it is in the file `token` of the server's data folder; give it with TASKVEC_TOKEN or `--data`";
        let given = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        match given.and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) if Secret::new(token) == self.0 => Ok(request),
            Some(_) => Err(Status::unauthenticated(format!("the token is not this server's: {WHERE}"))),
            None => Err(Status::unauthenticated(format!("this server needs a token: {WHERE}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_token_passes() {
        let mut check = TokenCheck::new(Secret::new("abc"));
        let mut code = |header: Option<&str>| {
            let mut request = Request::new(());
            if let Some(value) = header {
                request.metadata_mut().insert("authorization", value.parse().unwrap());
            }
            check.call(request).map(|_| ()).map_err(|status| status.code())
        };
        assert_eq!(code(Some("Bearer abc")), Ok(()));
        for wrong in [None, Some("abc"), Some("Bearer "), Some("Bearer abcd"), Some("Basic abc")] {
            assert_eq!(code(wrong), Err(tonic::Code::Unauthenticated), "{wrong:?}");
        }
    }
}
