//! An application's backend, as a node's hooks ask it.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::harness::backend::{Backend, Request};

/// One question of a node.
#[derive(Clone, Debug)]
pub struct Question {
    /// Which hook asks: `connect`, `subscribe` and so on.
    pub hook: String,
    /// The head of the request.
    pub head: String,
    /// What is asked.
    pub body: Value,
}

/// A backend, and what it was asked.
#[derive(Debug)]
pub struct Application {
    /// Where it listens.
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Question>>>,
    _backend: Backend,
}

impl Question {
    /// The values of all headers of this name.
    #[must_use]
    pub fn headers(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        let named = fields.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.trim()).collect()
    }
}

impl Application {
    /// Starts one; `respond` responds to each question with JSON, in its own time.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start<Respond, Responded>(respond: Respond) -> Result<Self>
    where
        Respond: Fn(Question) -> Responded + Clone + Send + Sync + 'static,
        Responded: Future<Output = Value> + Send + 'static,
    {
        let asked: Arc<Mutex<Vec<Question>>> = Arc::default();
        let seen = Arc::clone(&asked);
        let backend = Backend::start(move |request| {
            let (respond, seen) = (respond.clone(), Arc::clone(&seen));
            async move { serve(request, respond, &seen).await }
        })
        .await?;
        Ok(Self {
            address: backend.address,
            asked,
            _backend: backend,
        })
    }

    /// The address of a hook, for a node's settings.
    #[must_use]
    pub fn hook(&self, name: &str) -> Value {
        json!(format!("http://{}/{name}", self.address))
    }

    /// What this hook has asked so far, in order.
    #[must_use]
    pub fn asked(&self, hook: &str) -> Vec<Question> {
        let asked = self.asked.lock();
        asked
            .iter()
            .filter(|one| one.hook == hook)
            .cloned()
            .collect()
    }
}

async fn serve<Respond, Responded>(
    mut request: Request,
    respond: Respond,
    seen: &Mutex<Vec<Question>>,
) where
    Respond: Fn(Question) -> Responded,
    Responded: Future<Output = Value>,
{
    let length = request.header("content-length").unwrap_or_default();
    let length: usize = length.parse().unwrap_or_default();
    while request.rest.len() < length {
        if !matches!(request.stream.read_buf(&mut request.rest).await, Ok(1..)) {
            return;
        }
    }
    let path = request.head.split(' ').nth(1).unwrap_or_default();
    let question = Question {
        hook: path.trim_start_matches('/').to_owned(),
        body: serde_json::from_slice(&request.rest).unwrap_or_default(),
        head: request.head.clone(),
    };
    seen.lock().push(question.clone());
    let response = respond(question).await.to_string();
    // A node that has gone needs no response.
    request.respond("200 OK", "", &response).await.ok();
}
