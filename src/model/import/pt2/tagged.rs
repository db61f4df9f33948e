//! `{"as_tensor": …}`: objects with one key, which says what the value is.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// The values that an object with one key can stand for.
pub trait Tagged: Sized {
    /// What was expected, for the message.
    const WHAT: &'static str;

    /// Reads the value under `key` from `map`.
    fn read<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error>;
}

/// An object with one key.
#[derive(Debug)]
pub struct One<T>(pub T);

impl<'de, T: Tagged> Deserialize<'de> for One<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OneVisitor(PhantomData))
    }
}

struct OneVisitor<T>(PhantomData<T>);

impl<'de, T: Tagged> Visitor<'de> for OneVisitor<T> {
    type Value = One<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, an object with one key", T::WHAT)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let key: String = map.next_key()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        let value = T::read(&key, &mut map)?;
        if map.next_key::<IgnoredAny>()?.is_some() {
            return Err(A::Error::invalid_length(2, &self));
        }
        Ok(One(value))
    }
}
