//! Which certificate is served for which name, and how unusable ones are handled.

use super::*;
use crate::tls::file_state::FileStates;
use crate::tls::testing::{Authority, folder};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn load(folder: &Path) -> Result<Certificates, CertificateError> {
    let source = CertificateSource::Folder(folder.to_owned());
    Certificates::load(source, provider(), SystemTime::now())
}

/// The certificate that is served for `name`.
fn served(certificates: &Certificates, name: Option<&str>) -> Vec<u8> {
    certificates.now.load().find(name).cert[0].to_vec()
}

fn states(certificates: &Certificates, now: SystemTime) -> Vec<CertificateState> {
    let all = certificates.status(now).into_iter();
    all.map(|certificate| certificate.state).collect()
}

#[test]
fn a_name_is_matched_exactly_then_by_wildcard_then_by_the_default() {
    let folder = folder("names");
    let authority = Authority::new();
    let exact = authority.issue(&["chat.example"]).write(folder.path(), "b");
    let wild = authority.issue(&["*.example"]).write(folder.path(), "c");
    let first = authority.issue(&["first.test"]).write(folder.path(), "a");
    let certificates = load(folder.path()).unwrap();
    for (name, expected) in [
        (Some("chat.example"), &exact),
        (Some("other.example"), &wild),
        (Some("deep.other.example"), &first),
        (Some("example"), &first),
        (None, &first),
    ] {
        assert_eq!(&served(&certificates, name), expected, "{name:?}");
    }
}

#[test]
fn a_failed_reload_names_the_file_and_the_previous_certificate_is_served() {
    let folder = folder("wrong");
    let authority = Authority::new();
    let good = authority
        .issue(&["good.example"])
        .write(folder.path(), "good");
    let certificates = load(folder.path()).unwrap();
    let key = folder.path().join("good.key");
    let right = std::fs::read(&key).unwrap();
    let other = authority.issue(&["other.example"]);
    let now = SystemTime::now();
    for (content, expected) in [
        (other.key_pem().into_bytes(), "not the key of"),
        (b"nothing".to_vec(), "no private key"),
    ] {
        std::fs::write(&key, content).unwrap();
        assert_eq!(certificates.reload(now), [ReloadOutcome::Rejected]);
        assert_eq!(certificates.reload(now), [], "nothing has changed");
        let status = certificates.status(now).remove(0);
        assert_eq!(status.state, CertificateState::Previous);
        assert!(
            status.why.starts_with(&*key.to_string_lossy()) && status.why.contains(expected),
            "{status:?}"
        );
        assert_eq!(served(&certificates, Some("good.example")), good);
    }
    std::fs::write(&key, right).unwrap();
    assert_eq!(certificates.reload(now), [ReloadOutcome::Loaded]);
    assert_eq!(states(&certificates, now), [CertificateState::Good]);
    std::fs::write(folder.path().join("good.crt"), "-----BEGIN").unwrap();
    assert_eq!(certificates.reload(now), [ReloadOutcome::Rejected]);
    std::fs::remove_file(folder.path().join("good.crt")).unwrap();
    assert_eq!(certificates.reload(now), [ReloadOutcome::Rejected]);
    assert_eq!(served(&certificates, Some("good.example")), good);
    let status = certificates.status(now).pop().unwrap();
    assert!(
        status.why.contains("no certificate; expected"),
        "{status:?}"
    );
}

#[test]
fn an_unusable_certificate_does_not_keep_others_from_being_served_or_reloaded() {
    let folder = folder("one-wrong");
    let authority = Authority::new();
    std::fs::write(folder.path().join("a.crt"), "broken").unwrap();
    std::fs::write(folder.path().join("a.key"), "broken").unwrap();
    authority
        .issue_expired(&["b.example"])
        .write(folder.path(), "b");
    let first = authority.issue(&["c.example"]).write(folder.path(), "c");
    let certificates = load(folder.path()).unwrap();
    let now = SystemTime::now();
    let expected = [
        CertificateState::Unusable,
        CertificateState::OutOfDate,
        CertificateState::Good,
    ];
    assert_eq!(states(&certificates, now), expected);
    assert_eq!(served(&certificates, None), first, "the first valid one");
    let renewed = authority.issue(&["c.example"]).write(folder.path(), "c");
    assert_eq!(certificates.reload(now), [ReloadOutcome::Loaded]);
    assert_eq!(states(&certificates, now), expected);
    assert_eq!(served(&certificates, Some("c.example")), renewed);
    // The unusable ones can be renewed too.
    let renewed = authority.issue(&["b.example"]).write(folder.path(), "b");
    assert_eq!(certificates.reload(now), [ReloadOutcome::Loaded]);
    assert_eq!(served(&certificates, Some("b.example")), renewed);
}

#[test]
fn if_no_certificate_can_be_served_the_error_has_all_reasons() {
    let folder = folder("all-wrong");
    for name in ["a", "b"] {
        std::fs::write(folder.path().join(name).with_extension("crt"), "broken").unwrap();
    }
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("a.crt: no certificate") && error.contains("b.crt: no certificate"),
        "{error}"
    );
}

#[test]
fn an_expired_certificate_is_served_for_names_that_no_other_has() {
    let folder = folder("out-of-date");
    let authority = Authority::new();
    let write = |name: &str, host: &str| {
        let issued = authority.issue_expired(&[host]);
        issued.write(folder.path(), name)
    };
    let (alone, _) = (write("a", "alone.example"), write("b", "www.site.example"));
    let (now, certificates) = (SystemTime::now(), load(folder.path()).unwrap());
    assert_eq!(served(&certificates, None), alone, "better than nothing");
    let wildcard = authority
        .issue(&["*.site.example"])
        .write(folder.path(), "c");
    certificates.reload(now);
    assert_eq!(served(&certificates, Some("alone.example")), alone);
    for name in [Some("www.site.example"), Some("other.example"), None] {
        assert_eq!(served(&certificates, name), wildcard, "{name:?}");
    }
    let status = certificates.status(now).remove(0);
    assert!(status.why.contains("expired on Jan  1"), "{status:?}");
    assert_eq!(status.names, ["alone.example"]);
    // An older version that is valid is preferred.
    write("c", "*.site.example");
    assert_eq!(certificates.reload(now), [ReloadOutcome::Rejected]);
    assert_eq!(served(&certificates, Some("www.site.example")), wildcard);
    let status = certificates.status(now).pop().unwrap();
    assert_eq!(status.state, CertificateState::Previous);
}

#[test]
fn an_expired_certificate_is_replaced_by_another_of_the_same_name() {
    let folder = folder("ends");
    let authority = Authority::new();
    let (now, year) = (SystemTime::now(), Duration::from_secs(365 * 24 * 3600));
    let short = authority.issue_until(&["a.example"], now + year);
    let short = short.write(folder.path(), "a");
    let long = authority.issue_until(&["*.example"], now + 9 * year);
    let long = long.write(folder.path(), "b");
    let certificates = load(folder.path()).unwrap();
    certificates.update_for_dates(now);
    assert_eq!(served(&certificates, Some("a.example")), short);
    certificates.update_for_dates(now + 2 * year);
    assert_eq!(served(&certificates, Some("a.example")), long);
    assert_eq!(
        states(&certificates, now + 2 * year),
        [CertificateState::OutOfDate, CertificateState::Good]
    );
}

/// Replaces the files of a folder atomically, in the layout of a Kubernetes volume.
fn mount(folder: &Path, version: &str, files: &[(&str, String)]) {
    use std::os::unix::fs::symlink;

    let real = folder.join(format!("..{version}"));
    std::fs::create_dir(&real).unwrap();
    for (name, content) in files {
        std::fs::write(real.join(name), content).unwrap();
        let link = folder.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
    symlink(format!("..{version}"), folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

#[test]
fn a_secret_of_cert_manager_is_served_and_reloaded() {
    let folder = folder("cert-manager");
    let authority = Authority::new();
    // Issuers write the authority's certificate, an empty file, or a self-signed certificate.
    for (version, ca) in [
        ("2026_1", authority.pem()),
        ("2026_2", String::new()),
        ("2026_3", authority.issue(&["self.example"]).pem()),
    ] {
        let issued = authority.issue(&["a.example"]);
        let both = format!("{}{}", issued.key_pem(), issued.pem());
        let files = [
            ("tls.crt", issued.pem()),
            ("tls.key", issued.key_pem()),
            ("ca.crt", ca),
            ("tls-combined.pem", both),
        ];
        let before = load(folder.path()).ok().map(|certificates| {
            let paths = certificates.paths();
            (certificates, FileStates::read(paths))
        });
        mount(folder.path(), version, &files);
        let now = SystemTime::now();
        let certificates = match before {
            None => load(folder.path()).unwrap(),
            Some((certificates, file_states)) => {
                assert_ne!(file_states, FileStates::read(certificates.paths()));
                assert_eq!(certificates.reload(now), [ReloadOutcome::Loaded; 2]);
                certificates
            }
        };
        assert_eq!(states(&certificates, now), [CertificateState::Good; 2]);
        assert_eq!(served(&certificates, Some("a.example")), issued.der());
    }
}

#[test]
fn a_certificate_without_a_key_is_unusable_unless_it_is_an_authoritys() {
    let folder = folder("no-key");
    let (authority, now) = (Authority::new(), SystemTime::now());
    authority.issue(&["a.example"]).write(folder.path(), "a");
    std::fs::write(folder.path().join("chain.pem"), authority.pem()).unwrap();
    let certificates = load(folder.path()).unwrap();
    assert_eq!(states(&certificates, now), [CertificateState::Good]);
    let alone = authority.issue(&["b.example"]).pem();
    std::fs::write(folder.path().join("b.crt"), alone).unwrap();
    assert_eq!(certificates.reload(now), [ReloadOutcome::Rejected]);
    let status = certificates.status(now).pop().unwrap();
    assert_eq!(status.state, CertificateState::Unusable);
    assert!(status.why.contains("b.key: "), "{status:?}");
}

#[test]
fn a_chain_with_a_wrong_issuer_is_rejected() {
    let folder = folder("chain");
    let (authority, other) = (Authority::new(), Authority::new());
    let leaf = authority.issue(&["a.example"]);
    leaf.write_chain(folder.path(), "a", &[&authority]);
    load(folder.path()).unwrap();
    leaf.write_chain(folder.path(), "a", &[&other]);
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("the chain is not valid"), "{error}");
}

#[test]
fn an_empty_folder_and_a_missing_one_are_errors() {
    let folder = folder("empty");
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("no certificate"), "{error}");
    assert!(load(&folder.path().join("absent")).is_err());
}
