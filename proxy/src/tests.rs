//! The edge as a whole, between real sockets: scripted clients on one side, scripted backends on the other.

mod backend_tls;
mod cost;
mod deadlines;
mod forward;
mod limits;
mod listening;
mod mounted;
mod over_h2;
mod pieces;
mod plain;
mod scene;
mod upgrade;
mod waiting;

/// The one of the program: what is measured here is what operators get.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
