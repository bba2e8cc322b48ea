//! `make surroundings`: logs, disk, descriptors, ports, memory, DNS, clock and Redis of the programs fail, at random, under the load
//! of `make chaos`.
//!
//! ```text
//! publishers ─HTTP API─▶ three nodes ◀─wires─▶ redis
//!                            ▲
//! clients ─────▶ edge ───────┘        the surroundings of all of them fail
//! ```
//! [`faults`] are chosen by a seed, the [`injector`] causes them, [`scene`] is what they happen to, and [`machine`] and [`clock`] are
//! what can be changed of the machine itself. The load and its checker are those of [`chaos`](crate::chaos): what was acknowledged
//! reaches every client once and in order, or the client is told. After each fault everything has to be as before, soon. What was
//! seen is in [`observe`], a [`program`] is one of the four processes, and a [`report`] is for people.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::time::sleep;

pub mod clock;
pub mod faults;
pub mod injector;
pub mod machine;
pub mod observe;
pub mod program;
pub mod report;
pub mod scene;

use crate::chaos::{Finished, Load};
use faults::{Effect, Kind};
use injector::Injector;
use report::{Outcome, Report, Tried};
use scene::Scene;

/// Messages a second.
const RATE: u32 = 200;

/// For everybody to have everything once all is well again.
const SETTLE: Duration = Duration::from_secs(30);

/// From one fault to the next.
const CALM: Duration = Duration::from_millis(300);
const LONG_CALM: Duration = Duration::from_millis(5_500);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long there are faults.
    pub lasts: Duration,
    /// What the faults and their times follow from.
    pub seed: u64,
}

/// Does it. Configurations and logs are in a directory that goes with the report, unless a test fails meanwhile.
///
/// # Errors
///
/// A program ended, or was not as before soon after a fault; or the harness failed.
pub async fn run(plan: &Plan) -> Result<Report> {
    let mut scene = Scene::start().await?;
    let outcome = run_on(plan, &mut scene).await;
    let files = scene.end().await?;
    match outcome {
        Ok(outcome) => Ok(Report { outcome, files }),
        Err(error) => {
            let kept = files.keep();
            Err(error.context(format!("files of this run: {}", kept.display())))
        }
    }
}

async fn run_on(plan: &Plan, scene: &mut Scene) -> Result<Outcome> {
    let mut dice = fastrand::Rng::with_seed(plan.seed);
    let nodes: Vec<_> = scene.nodes.iter().map(|node| node.address).collect();
    let load = Load::start(&[scene.edge.address], &nodes, RATE, &mut dice);
    let began = Instant::now();
    let mut tried: BTreeMap<String, Tried> = BTreeMap::new();
    let mut bag: Vec<Kind> = Vec::new();
    sleep(Duration::from_secs(1)).await;
    for number in 1.. {
        if plan.lasts < began.elapsed() {
            break;
        }
        // Each kind once, in any order, and then again.
        if bag.is_empty() {
            bag = Kind::all(scene.means());
            dice.shuffle(&mut bag);
        }
        let Some(kind) = bag.pop() else { break };
        let mut injector = Injector {
            scene: &mut *scene,
            record: &load.record,
            dice: dice.fork(),
        };
        let inflicted = injector.inflict(kind).await;
        let when = || format!("{kind}, {:.1?} after the start", began.elapsed());
        let inflicted = inflicted.with_context(when)?;
        eprintln!("{number:>4}. {inflicted}");
        let (effect, new_clients) = (kind.effect(), &inflicted.new_clients);
        let is_kept = effect == Effect::Everyone || inflicted.reconnects == 0;
        ensure!(is_kept, "{kind}: clients lost their connections");
        let is_open = effect != Effect::None || new_clients.refused == 0;
        ensure!(
            is_open,
            "{kind}: new clients were refused: {:?}",
            new_clients.why
        );
        tried.entry(kind.to_string()).or_default().note(&inflicted);
        // Now and then longer than clients may wait for what they have missed.
        let calm = if dice.u8(..8) == 0 { LONG_CALM } else { CALM };
        sleep(calm).await;
    }
    let lasted = began.elapsed();
    let Finished {
        record,
        settled_after,
        stall_max,
    } = load.finish(SETTLE).await?;
    let lost_lines = scene.lost_lines().await?;
    let (tally, checker) = (record.tally().clone(), record.checker());
    Ok(Outcome {
        seed: plan.seed,
        lasted,
        tried,
        tally,
        counts: checker.counts.clone(),
        settled_after,
        stall_max,
        lost_lines,
        violations: checker.violations().to_vec(),
        violations_count: checker.violations_count(),
        panics: scene.panics(),
    })
}
