//! Every command of luoctl against a luod that says what the test has written down.

mod arena;
mod cycle;
mod errors;
mod fake;
mod inspect;
mod lists;
mod manual;
mod run;
mod status;
mod upgrade;
mod watch;
