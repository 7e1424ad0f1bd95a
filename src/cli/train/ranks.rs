//! `--mpi`: the processes of one `mpirun`.

use crate::cli::{Exit, Failure};
use crate::train::ranks::{Alone, Ranks};

/// Runs with the others, or alone; a failure of one rank ends all.
pub fn run(
    mpi: bool,
    work: impl FnOnce(&dyn Ranks) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    if !mpi {
        return work(&Alone);
    }
    let ranks = join()?;
    let outcome = work(ranks.as_ref());
    if let Err(failure) = &outcome
        && ranks.size() > 1
    {
        // What all ranks find, the first tells.
        if !ranks.is_first() {
            std::thread::sleep(std::time::Duration::from_secs(2));
            eprint!("rank {}: ", ranks.rank());
        }
        let exit = crate::cli::tell(failure, None);
        ranks.abort(exit as i32);
    }
    outcome
}

#[cfg(feature = "mpi")]
fn join() -> Result<Box<dyn Ranks>, Failure> {
    let joined = crate::train::ranks::mpi::Mpi::join();
    let twice = || Failure::new(Exit::Failure, "MPI is in use by this process already");
    Ok(Box::new(joined.ok_or_else(twice)?))
}

#[cfg(not(feature = "mpi"))]
fn join() -> Result<Box<dyn Ranks>, Failure> {
    let what = "--mpi: this hlrc-opt was built without MPI";
    Err(Failure::new(Exit::Usage, what).help(
        "build it with `cargo build --release --features mpi` where an MPI (libopenmpi-dev) and libclang are",
    ))
}
