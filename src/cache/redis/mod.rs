//! The internal cache of a fleet, in Redis or Valkey: how it is named ([`url`]), and what keeps the sessions secret and
//! whole there ([`keys`]).

pub mod keys;
pub mod url;
