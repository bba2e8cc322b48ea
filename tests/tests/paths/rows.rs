//! The rows of the table.

#[path = "rows/failures.rs"]
mod failures;
#[path = "rows/headers.rs"]
mod headers;
#[path = "rows/nginx.rs"]
mod nginx;
#[path = "rows/requests.rs"]
mod requests;
#[path = "rows/responses.rs"]
mod responses;
#[path = "rows/upgrades.rs"]
mod upgrades;

use crate::case::Case;

pub(crate) fn all() -> Vec<Case> {
    let mut all = requests::rows();
    all.extend(headers::rows());
    all.extend(responses::rows());
    all.extend(failures::rows());
    all.extend(upgrades::rows());
    all.extend(nginx::rows());
    all
}
