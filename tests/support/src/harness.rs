//! A gateway and a simulated ThingSpace for one test, over real sockets.
//!
//! Every wait has a deadline. A gateway that ends by itself fails the test that waits for it. At
//! the end of a test, the simulator must not have received a call that it does not know.

mod admin;
mod calls;
mod disclosure;
mod process;
mod upstream;
mod wait;

pub use admin::{Page, page_of};
pub use calls::{
    ACCOUNT, HeldOrder, Watching, device, get_status, kind, order, place, reason, states,
    status_call, upstream_device, watch,
};
pub use disclosure::assert_discloses_nothing;
pub use process::{Process, binary, serve_command, write_config};
pub use upstream::{Client, Gateway, Upstream, channel, connect};
pub use wait::{DEADLINE, eventually, eventually_ok, usable, within};
