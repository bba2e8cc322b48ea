//! What a client is told to do from outside, carried out one after the other. What it sends itself by requests of their
//! own is no such order, and waits for none ([`input`](super::input)).

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::debug;

use crate::client::channels::client::ChannelClient;
use crate::client::channels::client::input::Input;
use crate::client::channels::failure::Failure;
use crate::cluster::directory::Controls;
use crate::cluster::directory::Order;
use crate::cluster::directory::OrderRefused;
use crate::protocol::disconnect::Farewell;

/// Orders that may wait for one client. They wait only for Redis; more than that is a mistake of whoever
/// gives them.
const ORDERS_MAX: usize = 128;

/// What has come for one client from outside its connection and is not done. It is there only while something is.
#[derive(Default)]
pub(super) struct Orders {
    waiting: VecDeque<Order>,
    pub(super) input: Option<Input>,
}

impl Orders {
    /// Whether nothing is left to do.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.input.is_none()
    }
}

/// A client's orders come through the handle that lists it, which does not keep it alive.
impl Controls for ChannelClient {
    fn order(&self, order: &Order) -> Result<(), OrderRefused> {
        let Some(this) = self.this.upgrade() else {
            return Err(OrderRefused::Gone);
        };
        if let Order::Input(message) = order {
            return this.take_input(message.clone());
        }
        let is_first = {
            let mut orders = self.orders.lock();
            let queue = &mut orders.get_or_insert_default().waiting;
            if ORDERS_MAX <= queue.len() {
                return Err(OrderRefused::Busy);
            }
            queue.push_back(order.clone());
            queue.len() == 1
        };
        if is_first {
            self.clients
                .errands
                .spawn(this.carry_orders_out(order.clone()));
        }
        Ok(())
    }
}

impl ChannelClient {
    /// Carries orders out until none waits. One stays in the queue until it is done, so that a single task
    /// is at it.
    async fn carry_orders_out(self: Arc<Self>, first: Order) {
        let mut next = Some(first);
        while let Some(order) = next {
            self.carry_order_out(order).await;
            next = self.next_order();
        }
    }

    /// Takes the order that is done off the queue and returns the one behind it. Under one lock: whoever
    /// finds the queue empty begins anew.
    fn next_order(&self) -> Option<Order> {
        let mut orders = self.orders.lock();
        let queue = &mut orders.as_deref_mut()?.waiting;
        queue.pop_front();
        let next = queue.front().cloned();
        if orders.as_deref().is_some_and(Orders::is_idle) {
            *orders = None;
        }
        next
    }

    async fn carry_order_out(self: &Arc<Self>, order: Order) {
        match order {
            Order::Disconnect { code, reason } => {
                self.member.close(Farewell::by_application(code, reason));
            }
            Order::Unsubscribe {
                channel,
                code,
                reason,
            } => self.unsubscribe_by_order(&channel, code, &reason).await,
            Order::Refresh(lifetime) => self.refresh_by_order(lifetime),
            Order::Input(_) => debug_assert!(false, "it is taken before it gets here"),
            Order::Subscribe(order) => {
                let channel = order.channel.clone();
                match self.subscribe_by_order(*order).await {
                    Ok(()) => {}
                    Err(Failure::Error(error)) => {
                        debug!(client = %self.id, %channel, code = error.code, error = error.message, "a subscription by order failed");
                    }
                    Err(Failure::Disconnect(farewell)) => self.member.close(farewell),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
