//! Channels to the server: address, TLS, token, time limits.

use crate::{config::WorkerConfig, error::AgentError};
use std::time::Duration;
use taskvec_wire::{
    MAX_MESSAGE,
    pb::{blobs_client::BlobsClient, workers_client::WorkersClient},
};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// How long a connection may take to open, and how long the server may be silent on a ping.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub type Authorized = InterceptedService<Channel, Token>;

/// Adds the token to every call.
#[derive(Clone)]
pub struct Token(MetadataValue<Ascii>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Everything needed to open connections.
#[derive(Clone)]
pub struct Server {
    pub url: String,
    endpoint: Endpoint,
    token: Token,
}

impl Server {
    pub fn new(config: &WorkerConfig) -> Result<Self, AgentError> {
        let url = config.server.clone();
        let wrong = |reason: String| AgentError::Address { url: url.clone(), reason };
        let mut endpoint = Endpoint::from_shared(url.clone()).map_err(|e| wrong(e.to_string()))?;
        match (endpoint.uri().scheme_str(), &config.tls_ca) {
            (Some("http"), None) => {}
            (Some("https"), Some(path)) => {
                let pem = std::fs::read(path).map_err(|e| wrong(format!("cannot read {}: {e}", path.display())))?;
                let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
                endpoint = endpoint.tls_config(tls).map_err(|e| wrong(format!("{}: {e}", path.display())))?;
            }
            (Some("https"), None) => {
                return Err(wrong("https needs the server's authority; give --tls-ca FILE".into()));
            }
            (Some("http"), Some(_)) => {
                return Err(wrong("a TLS authority is given, so it must start with https".into()));
            }
            _ => return Err(wrong("it must be http://HOST:PORT or https://HOST:PORT".into())),
        }
        let endpoint = endpoint
            .connect_timeout(PATIENCE)
            .http2_keep_alive_interval(PATIENCE)
            .keep_alive_timeout(PATIENCE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let mut token = MetadataValue::try_from(format!("Bearer {}", config.token.expose()))
            .map_err(|_| AgentError::Config("the token has characters that cannot be sent".into()))?;
        token.set_sensitive(true);
        Ok(Self { url, endpoint, token: Token(token) })
    }

    /// Opens a connection for a session.
    pub async fn workers(&self) -> Result<WorkersClient<Authorized>, tonic::transport::Error> {
        let channel = self.endpoint.connect().await?;
        Ok(WorkersClient::with_interceptor(channel, self.token.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    /// A connection for checkpoints, apart from the session's so that heartbeats never queue behind them. Opens (again)
    /// when it is used.
    pub fn blobs(&self) -> BlobsClient<Authorized> {
        BlobsClient::with_interceptor(self.endpoint.connect_lazy(), self.token.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// What `status` means for the whole process: an error if no later try can succeed.
    pub fn fatal(&self, status: &Status) -> Option<AgentError> {
        let (url, reason) = (self.url.clone(), status.message().to_owned());
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => Some(AgentError::Unauthorized { url, reason }),
            Code::FailedPrecondition | Code::InvalidArgument | Code::Unimplemented => {
                Some(AgentError::Refused { url, reason })
            }
            _ => None,
        }
    }
}

/// An error with all its causes: tonic's transport errors keep the reason in their source.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn refused(url: &str, ca: Option<&str>) -> String {
        let mut config = WorkerConfig::new(url, Secret::new("t"), "/tmp/x");
        config.tls_ca = ca.map(Into::into);
        Server::new(&config).err().expect("is refused").to_string()
    }

    #[test]
    fn addresses_that_cannot_work_are_refused_with_the_reason() {
        assert!(refused("localhost:7", None).contains("http://HOST:PORT"));
        assert!(refused("https://localhost:7", None).contains("--tls-ca"));
        assert!(refused("http://localhost:7", Some("/ca.pem")).contains("https"));
        assert!(refused("https://localhost:7", Some("/nowhere/ca.pem")).contains("/nowhere/ca.pem"));
    }
}
