//! Bytes of weights by pipeline, from headers alone.

use crate::budget::{self, Group};
use crate::cli::{Failure, errors, signal};
use crate::ir::site::{Site, sites};
use crate::ir::{Module, Weight};
use crate::pass::manager::schedule::ScheduleError;
use crate::pass::manager::{self, Destination, RunOptions, Schedule};
use crate::pass::pipeline::Pipeline;

/// What the weights of a model take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// All weights.
    pub all: u64,
    /// Of them, matrices that pipelines work on by default.
    pub body: u64,
    /// Of them, embeddings and head.
    pub vocabulary: u64,
}

/// A model's matrices.
pub struct Weights<'a> {
    module: &'a Module,
    sites: Vec<Site>,
    groups: Vec<Group>,
    /// As they are.
    pub before: Sizes,
    /// Weights of the body's matrices.
    pub body_entries: u64,
    /// Weights of embeddings and head.
    pub vocabulary_entries: u64,
}

/// Which weights take which steps' bytes.
fn summed<'a>(all: u64, each: impl Iterator<Item = (&'a Site, u64, u64)>) -> Sizes {
    let mut sizes = Sizes {
        all,
        ..Sizes::default()
    };
    for (site, before, after) in each {
        sizes.all = sizes.all.saturating_sub(before).saturating_add(after);
        let part = match site.is_body() {
            true => &mut sizes.body,
            false if is_vocabulary(site) => &mut sizes.vocabulary,
            false => continue,
        };
        *part = part.saturating_add(after);
    }
    sizes
}

/// Whether it is an embedding or the head.
fn is_vocabulary(site: &Site) -> bool {
    use crate::ir::Role::{Embedding, Head};
    site.roles
        .iter()
        .any(|role| matches!(role, Embedding | Head))
}

impl<'a> Weights<'a> {
    /// Looks at a module, whose linears were found.
    pub fn of(module: &'a Module) -> Self {
        let sites = sites(module);
        let entries = |wanted: &dyn Fn(&Site) -> bool| {
            let chosen = sites.iter().filter(|site| wanted(site));
            chosen
                .map(|site| site.rows.saturating_mul(site.cols))
                .fold(0, u64::saturating_add)
        };
        let (body_entries, vocabulary_entries) = (entries(&Site::is_body), entries(&is_vocabulary));
        let all = module.weights.iter().map(Weight::bytes);
        let each = sites.iter().map(|site| {
            let bytes = site.matrix(module).map_or(0, |m| m.bytes(&module.weights));
            (site, bytes, bytes)
        });
        Self {
            module,
            before: summed(all.fold(0, u64::saturating_add), each),
            groups: budget::groups(module),
            body_entries,
            vocabulary_entries,
            sites,
        }
    }

    /// Whether a pipeline finds matrices that it can work on.
    pub fn are_dense(&self) -> bool {
        !self.groups.is_empty()
    }

    /// What they take behind a pipeline; exact for codes of a fixed size, else an upper bound.
    ///
    /// # Errors
    /// The pipeline can't be run.
    pub fn behind(&self, pipeline: &str) -> Result<Sizes, Failure> {
        let pipeline =
            Pipeline::parse(pipeline).map_err(|e| errors::schedule(&ScheduleError::Syntax(e)))?;
        let schedule = Schedule::new(&pipeline, &[], None).map_err(|e| errors::schedule(&e))?;
        let options = RunOptions::new(1, signal::flag());
        let plan = manager::plan(self.module, &schedule, &options, Destination::Folder);
        let plan = plan.map_err(|error| errors::run(&error))?;
        let planned = plan.sites.iter().map(|site| (site.bytes, site.after));
        let each = self.sites.iter().zip(planned).map(|(s, (b, a))| (s, b, a));
        Ok(summed(self.before.all, each))
    }

    /// What a trellis over the body takes at any bits, where `sizes` is what it takes at these.
    pub fn trellis(&self, sizes: Sizes, bits: f64) -> TrellisSizes<'_> {
        let known = trellis_bytes(&self.groups, bits);
        TrellisSizes {
            groups: &self.groups,
            others: Sizes {
                all: sizes.all.saturating_sub(known),
                body: sizes.body.saturating_sub(known),
                ..sizes
            },
        }
    }
}

/// Bytes of weights by the mean bits of a trellis over the body.
pub struct TrellisSizes<'a> {
    groups: &'a [Group],
    others: Sizes,
}

/// The groups' bytes at some bits.
fn trellis_bytes(groups: &[Group], bits: f64) -> u64 {
    let each = groups.iter().map(|group| group.trellis_bytes(bits));
    each.fold(0, u64::saturating_add)
}

impl TrellisSizes<'_> {
    /// At some bits.
    pub fn at(&self, bits: f64) -> (f64, Sizes) {
        let trellis = trellis_bytes(self.groups, bits);
        let sizes = Sizes {
            all: self.others.all.saturating_add(trellis),
            body: self.others.body.saturating_add(trellis),
            ..self.others
        };
        (bits, sizes)
    }

    /// At the most bits, in hundredths, of those that a budget gives, that are within so many bytes.
    pub fn most(&self, room: u64) -> Option<(f64, Sizes)> {
        let at = |hundredths: u32| self.at(f64::from(hundredths) / 100.0);
        let fits = |hundredths: u32| at(hundredths).1.all <= room;
        let (least, most) = budget::RANGE;
        let (mut low, mut beyond) = ((least * 100.0) as u32, (most * 100.0) as u32 + 1);
        if !fits(low) {
            return None;
        }
        while beyond - low > 1 {
            let middle = low + (beyond - low) / 2;
            match fits(middle) {
                true => low = middle,
                false => beyond = middle,
            }
        }
        Some(at(low))
    }
}
