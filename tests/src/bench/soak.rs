//! Half an hour of clients that come and go through an edge to a node, and what memory is left of it.
//!
//! Memory is read at the end of each minute, when those who stay are the only ones there. What was there
//! after the first minute is what a process keeps for good; all above it is taken for a leak.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::bench::certificate::Certificate;
use crate::bench::contender::{Contender as _, Place, Running, causeway};
use crate::bench::dialect::Dialect;
use crate::bench::load::{Load, Plan, Publishing};
use crate::bench::scenario::sessions::{self, Caller};
use crate::harness::descriptors;
use crate::harness::scratch::Scratch;

/// How much more memory than after the first minute is let pass, in hundredths.
const GROWTH_MAX: f64 = 5.0;
/// Clients that stay.
const RESIDENTS: usize = 300;
/// Clients, or sessions, of one kind that come and go together.
const VISITORS: usize = 50;
const PAYLOAD_BYTES: usize = 256;
/// How long each kind of work goes on before the next has its turn.
const TURN: Duration = Duration::from_millis(400);
/// How long after the last visitor memory is read: abandoned sessions end after 5 s.
const REST: Duration = Duration::from_secs(8);

/// How long to go on.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Lets clients come and go for so many minutes.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(2..))]
    pub minutes: u32,
    /// Has minutes of one second, and only shows that all of it works.
    #[arg(long)]
    pub quick: bool,
}

/// The memory of both programs, in bytes.
#[derive(Clone, Copy)]
struct Memory {
    edge: u64,
    node: u64,
}

/// Lets clients come and go, and prints the memory of edge and node after each minute.
///
/// # Errors
///
/// One of them has more than 5 % more memory at the end than after the first minute, or does not serve.
pub async fn run(options: &Options) -> Result<()> {
    descriptors::raise_limit()?;
    let (minute, rest) = match options.quick {
        true => (Duration::from_secs(1), Duration::from_millis(100)),
        false => (Duration::from_secs(60), REST),
    };
    let scratch = Scratch::new("soak")?;
    let tls = Certificate::new(scratch.path())?;
    let place = Place {
        directory: scratch.path(),
        threads: 1,
        backend: None,
        tls: Some(&tls),
        redis: None,
        redis_cluster: &[],
    };
    let node = causeway::Node.start(&place).await?;
    let place = Place {
        backend: Some(node.address),
        ..place
    };
    let edge = causeway::Edge.start(&place).await?;
    let whole = minute * options.minutes;
    let visits = Visits {
        edge: &edge,
        node: &node,
        tls: &tls,
    };
    let mut residents =
        Load::new(Plan::new(edge.address, Dialect::websocket("/ws")))?.lasting(whole + whole / 2);
    residents.open(RESIDENTS)?;
    let mut first = None;
    let mut last = None;
    for number in 1..=options.minutes {
        let end = Instant::now() + minute.saturating_sub(rest);
        let mut clients = 0;
        while Instant::now() < end {
            clients += visits.round(&mut residents)?;
        }
        residents.idle(rest)?;
        let memory = Memory {
            edge: edge.family()?.pss()?,
            node: node.family()?.pss()?,
        };
        writeln!(
            io::stdout(),
            "minute {number}: {clients} clients came and went; edge {} KB, node {} KB",
            memory.edge / 1_024,
            memory.node / 1_024
        )?;
        first.get_or_insert(memory);
        last = Some(memory);
    }
    ensure!(
        residents.lost() == 0,
        "{} clients were lost",
        residents.lost()
    );
    let (Some(first), Some(last)) = (first, last) else {
        return Ok(());
    };
    let grown = [
        ("edge", growth(first.edge, last.edge)),
        ("node", growth(first.node, last.node)),
    ];
    for (name, growth) in grown {
        writeln!(
            io::stdout(),
            "{name}: {growth:+.1} % since the first minute"
        )?;
        ensure!(
            options.quick || growth <= GROWTH_MAX,
            "the {name} has {growth:.1} % more memory than after its first minute"
        );
    }
    Ok(())
}

/// Hundredths that `last` is more than `first`.
fn growth(first: u64, last: u64) -> f64 {
    (last as f64 / first.max(1) as f64 - 1.0) * 100.0
}

/// Clients of every kind, who do not stay.
struct Visits<'a> {
    edge: &'a Running,
    node: &'a Running,
    tls: &'a Certificate,
}

impl Visits<'_> {
    /// Lets each kind come and go, and says how many they were.
    fn round(&self, residents: &mut Load) -> Result<u64> {
        let echo = || Plan::new(self.edge.address, Dialect::websocket("/echo"));
        let plain = Load::new(echo())?.churn(PAYLOAD_BYTES, TURN)?;
        let over_tls = self.edge.tls_clients(self.tls)?;
        let over_tls = over_tls.speaking(Dialect::websocket("/echo"));
        let over_tls = Load::new(over_tls)?.churn(PAYLOAD_BYTES, TURN)?;
        let sockjs = Plan::new(self.edge.address, Dialect::sockjs("/sockjs"));
        let sockjs = Load::new(sockjs)?.churn(PAYLOAD_BYTES, TURN)?;
        self.poll()?;
        self.subscribe()?;
        let publishing = Publishing {
            publishers: 8,
            per_second: 40,
            payload_bytes: PAYLOAD_BYTES,
        };
        residents.publish(&publishing, TURN)?;
        let requests = Plan::new(self.edge.address, Dialect::http("/ready", None));
        let mut requests = Load::new(requests)?;
        requests.open(VISITORS)?;
        let others = 3 * VISITORS as u64;
        Ok(plain.clients + over_tls.clients + sockjs.clients + others)
    }

    /// Opens sessions that poll, and leaves them.
    fn poll(&self) -> Result<()> {
        let mut caller = Caller::connect(self.edge.address)?;
        for _ in 0..VISITORS {
            caller.open(&format!("{}/0/s{:x}", sessions::BRIEF, fastrand::u64(..)))?;
        }
        Ok(())
    }

    /// Opens clients that subscribe to a channel each, publishes to some, and leaves them.
    fn subscribe(&self) -> Result<()> {
        let dialect = causeway::channels();
        let plan = Plan::new(self.node.address, dialect).with_channels(VISITORS);
        let mut load = Load::new(plan)?;
        load.open(VISITORS)?;
        let publishing = Publishing {
            publishers: 1,
            per_second: 200,
            payload_bytes: PAYLOAD_BYTES,
        };
        load.publish(&publishing, TURN)?;
        Ok(())
    }
}
