//! Certificates for tests, generated at run time.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// A folder that is removed on drop.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn folder(name: &str) -> Folder {
    let path = std::env::temp_dir().join(format!("causeway-tls-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    Folder(path)
}

/// Signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub(crate) struct Issued {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn issue(&self, names: &[&str]) -> Issued {
        self.issue_with(names, |_| {})
    }

    /// A certificate that expired years ago.
    pub(crate) fn issue_expired(&self, names: &[&str]) -> Issued {
        self.issue_with(names, |params| {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        })
    }

    pub(crate) fn issue_until(&self, names: &[&str], end: std::time::SystemTime) -> Issued {
        self.issue_with(names, |params| params.not_after = end.into())
    }

    fn issue_with(&self, names: &[&str], change: impl Fn(&mut CertificateParams)) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Issued { certificate, key }
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }
}

impl Issued {
    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        self.certificate.der().to_vec()
    }

    /// Writes `name.crt` and `name.key`. Returns the certificate as DER.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> Vec<u8> {
        self.write_chain(folder, name, &[])
    }

    /// The same, with `issuers` behind the certificate.
    pub(crate) fn write_chain(&self, folder: &Path, name: &str, issuers: &[&Authority]) -> Vec<u8> {
        let chain: String = std::iter::once(self.certificate.pem())
            .chain(issuers.iter().map(|issuer| issuer.pem()))
            .collect();
        std::fs::write(folder.join(format!("{name}.crt")), chain).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), self.key_pem()).unwrap();
        self.certificate.der().to_vec()
    }
}
