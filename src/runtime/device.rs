//! What a plan runs on.

use super::RuntimeError;
use crate::plan::interpret::Machine;
use std::str::FromStr;

/// Holds a plan's memory and runs its programs.
pub trait Device {
    /// Writes bytes to a persistent buffer, from its start.
    ///
    /// # Errors
    /// There is no such buffer, it is shorter, or the device refuses.
    fn write(&mut self, buffer: &str, bytes: &[u8]) -> Result<(), RuntimeError>;

    /// Reads bytes of a persistent buffer, from its start.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn read(&mut self, buffer: &str, bytes: &mut [u8]) -> Result<(), RuntimeError>;

    /// Runs a program from its first step to its last.
    ///
    /// # Errors
    /// There is no such program, or a step fails.
    fn run(&mut self, program: &str) -> Result<(), RuntimeError>;
}

impl<D: Device + ?Sized> Device for Box<D> {
    fn write(&mut self, buffer: &str, bytes: &[u8]) -> Result<(), RuntimeError> {
        (**self).write(buffer, bytes)
    }

    fn read(&mut self, buffer: &str, bytes: &mut [u8]) -> Result<(), RuntimeError> {
        (**self).read(buffer, bytes)
    }

    fn run(&mut self, program: &str) -> Result<(), RuntimeError> {
        (**self).run(program)
    }
}

impl Device for Machine<'_> {
    fn write(&mut self, buffer: &str, bytes: &[u8]) -> Result<(), RuntimeError> {
        let words = bytes.as_chunks::<4>().0.iter();
        let ints: Vec<i32> = words.map(|w| i32::from_le_bytes(*w)).collect();
        Ok(self.set_ints(buffer, &ints)?)
    }

    fn read(&mut self, buffer: &str, bytes: &mut [u8]) -> Result<(), RuntimeError> {
        let ints = self.ints(buffer)?;
        let all: Vec<u8> = ints.iter().flat_map(|v| v.to_le_bytes()).collect();
        let from = all.get(..bytes.len());
        let from =
            from.ok_or_else(|| RuntimeError::broken(buffer, "is shorter than what is read"))?;
        bytes.copy_from_slice(from);
        Ok(())
    }

    fn run(&mut self, program: &str) -> Result<(), RuntimeError> {
        Ok(Machine::run(self, program)?)
    }
}

/// Where a model runs, as the user names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

impl FromStr for Place {
    type Err = RuntimeError;

    fn from_str(text: &str) -> Result<Self, RuntimeError> {
        let number = text.strip_prefix("cuda:");
        match (text, number.and_then(|n| n.parse().ok())) {
            ("cpu", _) => Ok(Place::Cpu),
            ("cuda", _) => Ok(Place::Cuda(0)),
            (_, Some(number)) => Ok(Place::Cuda(number)),
            _ => Err(RuntimeError::UnknownDevice(text.to_string())),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Cpu => f.write_str("cpu"),
            Place::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}
