//! Certificates for TLS, as files in the names that NBD programs have for them: `ca-cert.pem`,
//! `server-cert.pem`, `server-key.pem`, `client-cert.pem`, `client-key.pem`.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::{Error, Result};

/// A server with the certificate in `directory`. Where there is a `ca-cert.pem` as well, clients
/// have to show a certificate that this authority has signed.
pub fn server(directory: &Path) -> Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions().map_err(invalid(directory))?;
    let builder = match directory.join("ca-cert.pem").exists() {
        true => {
            let roots = Arc::new(authorities(directory)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            builder.with_client_cert_verifier(verifier.map_err(invalid(directory))?)
        }
        false => builder.with_no_client_auth(),
    };
    let (chain, key) = identity(directory, "server")?;
    let config = builder.with_single_cert(chain, key).map_err(invalid(directory))?;
    Ok(Arc::new(config))
}

/// A client that trusts the authority in `directory`, and shows a certificate of its own if one is
/// there.
pub fn client(directory: &Path) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions().map_err(invalid(directory))?;
    let builder = builder.with_root_certificates(authorities(directory)?);
    let config = match directory.join("client-cert.pem").exists() {
        true => {
            let (chain, key) = identity(directory, "client")?;
            builder.with_client_auth_cert(chain, key).map_err(invalid(directory))?
        }
        false => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn authorities(directory: &Path) -> Result<RootCertStore> {
    let path = directory.join("ca-cert.pem");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&path)? {
        roots.add(certificate).map_err(invalid(&path))?;
    }
    Ok(roots)
}

fn identity(
    directory: &Path,
    who: &str,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(&directory.join(format!("{who}-cert.pem")))?;
    let path = directory.join(format!("{who}-key.pem"));
    Ok((chain, PrivateKeyDer::from_pem_file(&path).map_err(invalid(&path))?))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match all {
        Ok(found) if found.is_empty() => {
            Err(Error::Invalid(format!("{}: no certificate in it", path.display())))
        }
        Ok(found) => Ok(found),
        Err(error) => Err(invalid(path)(error)),
    }
}

fn invalid<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.display().to_string();
    move |error| Error::Invalid(format!("{path}: {error}"))
}
