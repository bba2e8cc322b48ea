//! What a client is told to do from outside, carried out one after the other.

use std::sync::Arc;

use tracing::debug;

use crate::channels::client::ChannelClient;
use crate::channels::failure::Failure;
use crate::directory::Controls;
use crate::directory::Order;
use crate::directory::OrderRefused;
use crate::disconnect::Farewell;

/// Orders that may wait for one client. They wait only for Redis; more than that is a mistake of whoever
/// gives them.
const ORDERS_MAX: usize = 128;

/// A client's orders come through the handle that lists it, which does not keep it alive.
impl Controls for ChannelClient {
    fn order(&self, order: &Order) -> Result<(), OrderRefused> {
        let Some(this) = self.this.upgrade() else {
            return Err(OrderRefused::Gone);
        };
        let is_first = {
            let mut orders = self.orders.lock();
            if ORDERS_MAX <= orders.len() {
                return Err(OrderRefused::Busy);
            }
            orders.push_back(order.clone());
            orders.len() == 1
        };
        if is_first {
            self.clients.errands.spawn(this.carry_orders_out());
        }
        Ok(())
    }
}

impl ChannelClient {
    /// Carries orders out until none waits. One stays in the queue until it is done, so that a single task
    /// is at it.
    async fn carry_orders_out(self: Arc<Self>) {
        loop {
            let Some(order) = self.orders.lock().front().cloned() else {
                return;
            };
            self.carry_order_out(order).await;
            let mut orders = self.orders.lock();
            orders.pop_front();
            if orders.is_empty() {
                return;
            }
        }
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
            } => self.end_subscription(&channel, code, &reason),
            Order::Refresh(lifetime) => self.refresh_by_order(lifetime),
            Order::Input(data) => Arc::clone(self).receive(data).await,
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
