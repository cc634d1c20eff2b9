//! A whole bridge in this process, over real mutual TLS, with members that are written here.

mod bed;
mod joining;
mod member;
mod permissions;
mod restarting;
mod rotating;
