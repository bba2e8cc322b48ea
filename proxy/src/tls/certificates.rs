//! The certificates of a listener: read from files, checked, chosen by name, replaced while connections go on.
//!
//! Each certificate stands for itself: one that is wrong is not served and keeps no other from being served or renewed. Where
//! its files were right before, what they held then goes on being served. One whose dates are over (or have not come) serves a
//! name only if no other certificate has it: clients that check dates refuse it, and an edge that did not start would serve
//! nobody, not even the challenge that renews it.
//!
//! A certificate serves the names that it holds itself (its subject alternative names), so that file and names cannot disagree.

mod pair;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use causeway_conf::folder_entries;
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use webpki::KeyUsage;

use crate::config::{CertificateFiles, CertificateSource};
use crate::tls::certificates::pair::Pair;

pub(super) use crate::tls::certificates::pair::{check, unix};

/// The endings of a certificate in a folder; its key is called the same, with `.key`.
const ENDINGS: [&str; 2] = ["crt", "pem"];

/// Why a certificate cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read, or holds something else.
    #[error("{path}: {why}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// There is none.
    #[error("{0}: no certificate; expected NAME.crt or NAME.pem, with its key in NAME.key")]
    Empty(PathBuf),
    /// There are several, and none of them can be served.
    #[error("none of {} certificates can be served: {}", .0.len(), in_one_line(.0))]
    All(Vec<CertificateError>),
}

impl CertificateError {
    fn file(path: &Path, why: impl Into<String>) -> Self {
        let (path, why) = (path.to_owned(), why.into());
        Self::File { path, why }
    }
}

/// As many of `errors` as fit in a line that somebody reads.
fn in_one_line(errors: &[CertificateError]) -> String {
    const SHOWN: usize = 5;
    let shown = errors.iter().take(SHOWN).map(CertificateError::to_string);
    let mut line = shown.collect::<Vec<_>>().join("; ");
    if SHOWN < errors.len() {
        line.push_str("; ...");
    }
    line
}

/// The certificates that serve now. Clones of its `Arc` see every change.
#[derive(Debug)]
pub(crate) struct Certificates {
    source: CertificateSource,
    provider: Arc<CryptoProvider>,
    read: Mutex<Read>,
    now: ArcSwap<Set>,
}

/// What the files held when they were last read.
#[derive(Debug, Default)]
struct Read {
    entries: Vec<Entry>,
    /// Why the folder could not be listed, or has nothing to serve; then `entries` are what was there before.
    folder: Option<CertificateError>,
}

/// The files of one certificate, and what is served from them.
#[derive(Debug)]
struct Entry {
    files: CertificateFiles,
    /// The newest version that is worth serving, which may be older than the files.
    served: Option<Pair>,
    /// What is wrong with the files as they are now.
    wrong: Option<CertificateError>,
}

/// Certificates by the names that they serve, as of one moment.
#[derive(Debug)]
struct Set {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    /// The names that none of `by_name` serves.
    by_name_out_of_date: HashMap<String, Arc<CertifiedKey>>,
    /// For clients that name nobody, or somebody unknown: the first.
    default: Arc<CertifiedKey>,
    /// When the first of them ends, as UNIX time.
    ends: Duration,
    /// When another set has to be built because a certificate ends or begins, as UNIX time.
    changes: Duration,
}

/// How a certificate is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CertificateState {
    /// As its files are.
    Good,
    /// As its files were before something went wrong with them.
    Previous,
    /// Only where no other one has the name: its dates are over, or have not come.
    OutOfDate,
    /// Not at all.
    Unusable,
}

impl CertificateState {
    pub(crate) const ALL: [Self; 4] = [Self::Good, Self::Previous, Self::OutOfDate, Self::Unusable];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Previous => "previous",
            Self::OutOfDate => "out_of_date",
            Self::Unusable => "unusable",
        }
    }
}

/// What operators get to know of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateStatus {
    pub(crate) path: PathBuf,
    pub(crate) state: CertificateState,
    /// What is wrong; empty if nothing is.
    pub(crate) why: String,
    /// The names of what is served.
    pub(crate) names: Vec<String>,
    /// When it ends, as UNIX time, if it is served.
    pub(crate) ends: Option<Duration>,
}

/// What reading the files again has changed for one certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Its new version is served.
    Taken,
    /// Its new version is wrong.
    Refused,
}

impl Certificates {
    /// Reads and checks the files of `source`.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] if no certificate can be served: unreadable, no certificate or key in the file, a key of another
    /// certificate, a chain whose links do not fit. If one can, the others are named by [`Certificates::status`].
    pub(crate) fn load(
        source: CertificateSource,
        provider: Arc<CryptoProvider>,
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        let files = files_of(&source)?;
        let entries = files.into_iter().map(|files| Entry::read(files, &provider));
        let entries: Vec<Entry> = entries.collect();
        let Some(set) = Set::build(&entries, unix(now)) else {
            let mut errors: Vec<_> = entries.into_iter().filter_map(|it| it.wrong).collect();
            return Err(match errors.len() {
                0 => empty(&source),
                1 => errors.remove(0),
                _ => CertificateError::All(errors),
            });
        };
        Ok(Self {
            source,
            provider,
            read: Mutex::new(Read {
                entries,
                folder: None,
            }),
            now: ArcSwap::from_pointee(set),
        })
    }

    /// Reads the files again, and serves what they hold from now on, each certificate for itself.
    ///
    /// If that leaves nothing to serve, everything stays as it is.
    pub(super) fn reload(&self, now: SystemTime) -> Vec<Change> {
        let mut read = self.read.lock();
        let files = match files_of(&self.source) {
            Ok(files) if files.is_empty() => Err(empty(&self.source)),
            files => files,
        };
        let files = match files {
            Ok(files) => files,
            Err(error) => return read.refuse_folder(error),
        };
        let mut changes = Vec::new();
        let mut before: HashMap<PathBuf, Entry> = std::mem::take(&mut read.entries)
            .into_iter()
            .map(|entry| (entry.files.certificate.clone(), entry))
            .collect();
        for files in files {
            let before = before.remove(&files.certificate);
            let entry = Entry::read(files, &self.provider);
            let (entry, change) = entry.or_rather(before, unix(now));
            changes.extend(change);
            read.entries.push(entry);
        }
        match Set::build(&read.entries, unix(now)) {
            Some(set) => {
                read.folder = None;
                self.now.store(Arc::new(set));
            }
            // All those that were served are gone, and what is there instead cannot be.
            None => {
                read.folder = Some(empty(&self.source));
            }
        }
        changes
    }

    /// Serves by the dates of certificates as they are now: one that has ended makes way for another of the same name.
    pub(super) fn follow_dates(&self, now: SystemTime) {
        let now = unix(now);
        if now < self.now.load().changes {
            return;
        }
        let read = self.read.lock();
        if let Some(set) = Set::build(&read.entries, now) {
            self.now.store(Arc::new(set));
        }
    }

    /// When the first certificate that is served ends, as UNIX time.
    pub(super) fn ends(&self) -> Duration {
        self.now.load().ends
    }

    /// Each certificate, in the order in which they are tried.
    pub(crate) fn status(&self, now: SystemTime) -> Vec<CertificateStatus> {
        let now = unix(now);
        let read = self.read.lock();
        let mut all: Vec<_> = read.entries.iter().map(|entry| entry.status(now)).collect();
        if let (Some(error), CertificateSource::Folder(folder)) = (&read.folder, &self.source) {
            all.push(CertificateStatus {
                path: folder.clone(),
                state: CertificateState::Unusable,
                why: error.to_string(),
                names: Vec::new(),
                ends: None,
            });
        }
        all
    }

    /// The files that there are now.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let files = files_of(&self.source).unwrap_or_default();
        let pairs = files.into_iter();
        pairs
            .flat_map(|pair| [pair.certificate, pair.key])
            .collect()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let set = self.now.load();
        Some(Arc::clone(set.find(hello.server_name())))
    }
}

impl Read {
    /// Keeps what was there. It is one change, unless nothing has changed.
    fn refuse_folder(&mut self, error: CertificateError) -> Vec<Change> {
        if self.folder.as_ref() == Some(&error) {
            return Vec::new();
        }
        self.folder = Some(error);
        vec![Change::Refused]
    }
}

impl Entry {
    fn read(files: CertificateFiles, provider: &CryptoProvider) -> Self {
        let (served, wrong) = match Pair::read(&files, provider, KeyUsage::server_auth()) {
            Ok(pair) => (Some(pair), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            files,
            served,
            wrong,
        }
    }

    /// It, or what was served `before` if that is better; and what has changed.
    fn or_rather(mut self, before: Option<Self>, now: Duration) -> (Self, Option<Change>) {
        if let Some(pair) = &self.served {
            self.wrong = pair.wrong_dates(now, &self.files.certificate);
        }
        let (old, was_wrong) = before.map_or((None, None), |entry| (entry.served, entry.wrong));
        let is_same = self.served.is_some() && self.served == old;
        let is_worse = |old: &Pair| match &self.served {
            None => true,
            Some(new) => !new.is_valid(now) && old.is_valid(now),
        };
        let keeps_old = !is_same && old.as_ref().is_some_and(is_worse);
        let change = match &self.wrong {
            Some(wrong) if was_wrong.as_ref() != Some(wrong) && !is_same => Some(Change::Refused),
            None if !is_same || was_wrong.is_some() => Some(Change::Taken),
            _ => None,
        };
        if keeps_old {
            self.served = old;
        } else if self.served.is_some() {
            // What its dates say is looked up whenever it is asked for.
            self.wrong = None;
        }
        (self, change)
    }

    fn status(&self, now: Duration) -> CertificateStatus {
        let path = &self.files.certificate;
        let dates = self
            .served
            .as_ref()
            .and_then(|pair| pair.wrong_dates(now, path));
        let state = match (&self.served, &self.wrong, &dates) {
            (None, ..) => CertificateState::Unusable,
            (_, _, Some(_)) => CertificateState::OutOfDate,
            (_, Some(_), None) => CertificateState::Previous,
            (_, None, None) => CertificateState::Good,
        };
        let why = self.wrong.as_ref().or(dates.as_ref());
        CertificateStatus {
            path: path.clone(),
            state,
            why: why.map_or_else(String::new, CertificateError::to_string),
            names: self
                .served
                .as_ref()
                .map_or_else(Vec::new, |pair| pair.names.clone()),
            ends: self.served.as_ref().map(Pair::ends),
        }
    }
}

impl Set {
    /// `None` if there is nothing to serve.
    fn build(entries: &[Entry], now: Duration) -> Option<Self> {
        let served = || entries.iter().filter_map(|entry| entry.served.as_ref());
        let (mut by_name, mut by_name_out_of_date) = (HashMap::new(), HashMap::new());
        for pair in served() {
            let names = match pair.is_valid(now) {
                true => &mut by_name,
                false => &mut by_name_out_of_date,
            };
            for name in &pair.names {
                // Where two hold a name, the first keeps it.
                names
                    .entry(name.clone())
                    .or_insert_with(|| Arc::clone(&pair.key));
            }
        }
        let default = served()
            .find(|pair| pair.is_valid(now))
            .or_else(|| served().next())?;
        let changes = served().filter_map(|pair| pair.next_change(now)).min();
        Some(Self {
            by_name,
            by_name_out_of_date,
            default: Arc::clone(&default.key),
            ends: served().map(Pair::ends).min().unwrap_or(Duration::MAX),
            changes: changes.unwrap_or(Duration::MAX),
        })
    }

    /// The exact name, then the wildcard over its first label (RFC 6125, 6.4.3), then the same out of date, then the default.
    fn find(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        let Some(name) = name else {
            return &self.default;
        };
        Self::find_in(&self.by_name, name)
            .or_else(|| Self::find_in(&self.by_name_out_of_date, name))
            .unwrap_or(&self.default)
    }

    fn find_in<'set>(
        names: &'set HashMap<String, Arc<CertifiedKey>>,
        name: &str,
    ) -> Option<&'set Arc<CertifiedKey>> {
        if names.is_empty() {
            return None;
        }
        let by_wildcard = || {
            let (_, rest) = name.split_once('.')?;
            names.get(&format!("*.{rest}"))
        };
        names.get(name).or_else(by_wildcard)
    }
}

fn empty(source: &CertificateSource) -> CertificateError {
    CertificateError::Empty(match source {
        CertificateSource::Folder(folder) => folder.clone(),
        CertificateSource::Files(_) => PathBuf::new(),
    })
}

/// The pairs of files, those of a folder in the order of their names.
///
/// Of a folder, files with a dot in front are left out (writers and Kubernetes keep their own there), and so are certificates of
/// authorities that lie beside (`ca.crt` as cert-manager writes it): they have no key.
fn files_of(source: &CertificateSource) -> Result<Vec<CertificateFiles>, CertificateError> {
    let folder = match source {
        CertificateSource::Files(files) => return Ok(files.clone()),
        CertificateSource::Folder(folder) => folder,
    };
    let unreadable = |error: std::io::Error| CertificateError::file(folder, error.to_string());
    let mut files = Vec::new();
    for certificate in folder_entries(folder).map_err(unreadable)? {
        let is_hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
        if certificate.file_name().is_none_or(is_hidden) {
            continue;
        }
        let ending = certificate.extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
            files.extend(pair::find_key(certificate));
        }
    }
    files.sort_by(|a, b| a.certificate.cmp(&b.certificate));
    Ok(files)
}

#[cfg(test)]
mod tests;
