//! Nodes without Redis behind one edge: enough where no client needs to hear another.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::harness::{
    descriptors,
    edge::{self, Edge},
    faulty::Faulty,
    loopback,
    node::{self, Node},
    scratch::Scratch,
};

/// What a [`Site`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct SiteConfig<'a> {
    /// How many nodes run: `n1`, `n2`, ...
    pub nodes: usize,
    /// How many more the edge knows, with the next numbers, that do not run yet: [`Node::restart`] starts them.
    pub away: usize,
    /// How the edge reaches them.
    pub wires: Wires,
    /// Keys and values that the settings of the edge get.
    pub edge: &'a [(&'a str, Value)],
}

/// How the edge reaches the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wires {
    /// As they are.
    Direct,
    /// Over wires whose faults can be chosen.
    Faulty,
}

/// The whole of it. The fields are dropped in this order: the edge first, its files last.
#[derive(Debug)]
pub struct Site {
    /// What clients connect to.
    pub edge: Edge,
    /// The wires to the nodes in their order, if they were asked for.
    pub wires: Vec<Faulty>,
    /// Those that run, then those that are away.
    pub nodes: Vec<Node>,
    /// Where the files of all of them are.
    pub scratch: Scratch,
}

impl Site {
    /// Starts all of it and waits until the edge knows every node that runs.
    ///
    /// # Errors
    ///
    /// One of them did not start.
    pub async fn start(name: &str, config: SiteConfig<'_>) -> Result<Self> {
        descriptors::raise_limit()?;
        let scratch = Scratch::new(name)?;
        let (mut nodes, mut wires) = (Vec::new(), Vec::new());
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for number in 1..=config.nodes + config.away {
            let settings = node::patient(node::settings());
            let settings = settings.with("listen", json!(loopback::own_any_port()));
            let mut node = Node::start(&format!("n{number}"), settings, scratch.path()).await?;
            // It has an address now, which nobody else takes.
            if config.nodes < number {
                node.kill().await?;
            }
            addresses.push(node.address);
            nodes.push(node);
        }
        if config.wires == Wires::Faulty {
            for address in &mut addresses {
                let wire = Faulty::start(*address).await?;
                *address = wire.address;
                wires.push(wire);
            }
        }
        let ids = nodes.iter().map(|node| node.id.as_str());
        let backends: Vec<(&str, SocketAddr)> = ids.zip(addresses).collect();
        let mut settings = edge::settings(&backends)
            // A probe that a busy machine responds late must not look like a fault.
            .with("health.timeout", json!("5s"));
        for (key, value) in config.edge {
            settings = settings.with(key, value.clone());
        }
        let edge = Edge::start(&settings, scratch.path()).await?;
        for node in &nodes[..config.nodes] {
            edge.backend_in_state(&node.id, "up").await?;
        }
        Ok(Self {
            edge,
            wires,
            nodes,
            scratch,
        })
    }

    /// The node with this id.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn node(&mut self, id: &str) -> Result<&mut Node> {
        let found = self.nodes.iter_mut().find(|node| node.id == id);
        found.with_context(|| format!("there is no node {id}"))
    }

    /// Kills the node and waits until the edge says that it is down.
    ///
    /// # Errors
    ///
    /// It does not say so soon.
    pub async fn lose(&mut self, id: &str) -> Result<()> {
        self.node(id)?.kill().await?;
        self.edge.backend_in_state(id, "down").await
    }

    /// Starts the node where it was and waits until the edge says that it is up.
    ///
    /// # Errors
    ///
    /// It does not start, or the edge does not say so soon.
    pub async fn bring_back(&mut self, id: &str) -> Result<()> {
        self.node(id)?.restart().await?;
        self.edge.backend_in_state(id, "up").await
    }
}
