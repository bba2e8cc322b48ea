//! Tests of the whole edge over real sockets, between scripted clients and scripted backends.

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

/// The same allocator as in the program, so that measurements apply to it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
