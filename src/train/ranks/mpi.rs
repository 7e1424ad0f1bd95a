//! Ranks that `mpirun` started.

use super::Ranks;
use mpi::collective::SystemOperation;
use mpi::datatype::Equivalence;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

/// Values that go out at a time: counts of MPI are 32 bits wide.
const AT_ONCE: usize = 1 << 24;

/// The processes of one `mpirun`.
pub struct Mpi {
    world: SimpleCommunicator,
    /// MPI ends with it.
    _universe: Universe,
}

impl Mpi {
    /// Joins the others; none where this process has done so before.
    pub fn join() -> Option<Self> {
        let universe = mpi::initialize()?;
        Some(Self {
            world: universe.world(),
            _universe: universe,
        })
    }

    /// Sums that are made in one place, so that all ranks get the same bits.
    fn reduce<T: Equivalence + Copy>(&self, values: &mut [T]) {
        let root = self.world.process_at_rank(0);
        for part in values.chunks_mut(AT_ONCE) {
            let own = part.to_vec();
            match self.is_first() {
                true => root.reduce_into_root(&own[..], part, SystemOperation::sum()),
                false => root.reduce_into(&own[..], SystemOperation::sum()),
            }
            root.broadcast_into(part);
        }
    }
}

impl Ranks for Mpi {
    fn rank(&self) -> usize {
        usize::try_from(self.world.rank()).unwrap_or(0)
    }

    fn size(&self) -> usize {
        usize::try_from(self.world.size()).unwrap_or(1)
    }

    fn sum(&self, values: &mut [f32]) {
        self.reduce(values);
    }

    fn total(&self, value: f64) -> f64 {
        let mut values = [value];
        self.reduce(&mut values);
        values[0]
    }

    fn wait(&self) {
        self.world.barrier();
    }

    fn abort(&self, code: i32) {
        self.world.abort(code);
    }
}
