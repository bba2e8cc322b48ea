//! Plays the rows over the paths, and says how it went.

use std::{collections::BTreeMap, env, fmt::Write as _, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use causeway_tests::harness::wait;
use futures_util::future::join_all;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    case::Case,
    check,
    exchange::Exchange,
    got::Got,
    http1, http2,
    path::{ALL, Path},
    site::Site,
};

/// For one row on one path: longer than anything that a row waits for.
const DEADLINE: Duration = Duration::from_secs(60);

/// How one row went on one path.
struct Played {
    row: usize,
    path: Path,
    case: Case,
    exchange: Arc<Exchange>,
    next: Arc<Exchange>,
    got: Result<Got>,
}

impl Played {
    /// What is not as it should be. Complete only when nothing else is played: what comes behind a request may come late.
    fn faults(&self) -> Vec<String> {
        match &self.got {
            Ok(got) => check::faults(self.path, &self.case, &self.exchange, &self.next, got),
            Err(error) => {
                let mut found = vec![format!("{error:#}")];
                found.extend(self.exchange.faults());
                found
            }
        }
    }
}

/// What became of all rows.
pub(crate) struct Report {
    /// The table, with a mark for each row and path, and the counts.
    pub(crate) table: String,
    /// What is not as it should be; empty if nothing is.
    pub(crate) failures: String,
}

/// Plays every row on every path that it exists on; the paths run at the same time. `CAUSEWAY_CASE` and `CAUSEWAY_PATH` choose
/// the rows that have this in their names, and one path.
pub(crate) async fn all(mut site: Site, cases: Vec<Case>) -> Result<Report> {
    let wanted = env::var("CAUSEWAY_CASE").unwrap_or_default();
    let path_wanted = env::var("CAUSEWAY_PATH").ok();
    let cases: Arc<Vec<Case>> = Arc::new(
        cases
            .into_iter()
            .filter(|case| case.name.contains(&wanted))
            .collect(),
    );
    let shared = Arc::new(site);
    let mut paths = JoinSet::new();
    for path in ALL {
        if path_wanted
            .as_ref()
            .is_some_and(|wanted| wanted != path.name())
        {
            continue;
        }
        let (site, cases) = (Arc::clone(&shared), Arc::clone(&cases));
        paths.spawn(async move { on_path(&site, path, &cases).await });
    }
    let played: Vec<Played> = paths.join_all().await.into_iter().flatten().collect();
    site = Arc::into_inner(shared).context("a path still runs")?;
    let mut report = report(&cases, &played);
    for stray in site.exchanges.strays() {
        let _ = writeln!(report.failures, "a stray at a backend: {stray}");
    }
    for left in site.left_over().await {
        let _ = writeln!(report.failures, "{left}");
    }
    for program in site.ended() {
        let _ = writeln!(report.failures, "the {program} has ended");
    }
    Ok(report)
}

/// Plays one row after the other, and those that wait for a deadline beside them.
async fn on_path(site: &Site, path: Path, cases: &[Case]) -> Vec<Played> {
    let rows = cases.iter().enumerate();
    let rows: Vec<(usize, Case)> = rows
        .filter_map(|(row, case)| Some((row, case.on(path)?)))
        .collect();
    let (waiting, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, case)| case.waits);
    let waiting = waiting
        .into_iter()
        .map(|(row, case)| one(site, path, row, case));
    let others = async {
        let mut all = Vec::new();
        for (row, case) in others {
            all.push(one(site, path, row, case).await);
        }
        all
    };
    let (mut all, others) = tokio::join!(join_all(waiting), others);
    all.extend(others);
    all
}

/// Plays rows over one path, one after the other, and says what is not as it should be.
pub(crate) async fn in_turn(site: &Site, path: Path, cases: &[Case]) -> Vec<String> {
    let mut faults = Vec::new();
    for (row, case) in cases.iter().enumerate() {
        let Some(case) = case.on(path) else { continue };
        let played = one(site, path, row, case).await;
        let found = played.faults().into_iter();
        faults.extend(found.map(|fault| format!("{path}, {}: {fault}", played.case.name)));
    }
    faults
}

async fn one(site: &Site, path: Path, row: usize, case: Case) -> Played {
    let case = with_cookie(case, &site.cookie);
    let exchange = Exchange::new(case.attempts.clone());
    let next = Exchange::next();
    site.exchanges.add(&exchange);
    site.exchanges.add(&next);
    let got = timeout(DEADLINE, play(site, path, &case, &exchange, &next)).await;
    let got = got.unwrap_or_else(|_| Err(anyhow::anyhow!("no end within {DEADLINE:?}")));
    Played {
        row,
        path,
        case,
        exchange,
        next,
        got,
    }
}

async fn play(
    site: &Site,
    path: Path,
    case: &Case,
    exchange: &Exchange,
    next: &Exchange,
) -> Result<Got> {
    let (address, clients) = (site.address(path), site.clients(path));
    let got = if path.is_h2() {
        http2::play(address, clients, case, exchange, next).await?
    } else {
        http1::play(path, address, clients, case, exchange, next).await?
    };
    let over = async {
        while !exchange.is_over() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(wait::SOON, over).await.is_err() {
        exchange.complain("the backend still waits for the end of a request");
    }
    Ok(got)
}

/// Fills the value of the affinity cookie in.
fn with_cookie(mut case: Case, cookie: &str) -> Case {
    for (_, value) in &mut case.request.headers {
        *value = value.replace("{cookie}", cookie);
    }
    case
}

fn report(cases: &[Case], played: &[Played]) -> Report {
    let mut faults: BTreeMap<(usize, Path), Vec<String>> = BTreeMap::new();
    for played in played {
        faults.insert((played.row, played.path), played.faults());
    }
    let mut table = format!("{:76}", "");
    for path in ALL {
        let _ = write!(table, "{:>7}", path.name());
    }
    let mut failures = String::new();
    let (mut count, mut failed) = (0, 0);
    for (row, case) in cases.iter().enumerate() {
        let _ = write!(table, "\n{:76}", case.name);
        for path in ALL {
            let mark = match faults.get(&(row, path)) {
                None => "",
                Some(found) if found.is_empty() => "ok",
                Some(_) => "FAIL",
            };
            let _ = write!(table, "{mark:>7}");
        }
        let of_row: Vec<(Path, &Vec<String>)> = ALL
            .into_iter()
            .filter_map(|path| Some((path, faults.get(&(row, path))?)))
            .collect();
        count += of_row.len();
        // Paths with the same faults share a paragraph.
        let mut groups: Vec<(Vec<Path>, &Vec<String>)> = Vec::new();
        for (path, found) in of_row {
            if found.is_empty() {
                continue;
            }
            failed += 1;
            match groups.iter_mut().find(|(_, same)| *same == found) {
                Some((paths, _)) => paths.push(path),
                None => groups.push((vec![path], found)),
            }
        }
        for (paths, found) in groups {
            let names: Vec<&str> = paths.into_iter().map(Path::name).collect();
            let _ = writeln!(failures, "{} [{}]", case.name, names.join(" "));
            for fault in found {
                let _ = writeln!(failures, "    {fault}");
            }
        }
    }
    let _ = write!(
        table,
        "\n\n{} rows over {} paths: {count} cases, {failed} failed",
        cases.len(),
        ALL.len()
    );
    Report { table, failures }
}
