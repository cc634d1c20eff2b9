//! A whole bridge in this process, over real mutual TLS, with members that are written here.

mod bed;
mod joining;
mod member;
mod permissions;
mod redundancy;
mod restarting;
mod rotating;
