//! x
mod common;
mod redis_world;
