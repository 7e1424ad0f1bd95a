//! Which sums are gathered where, and which sites they are of.

use std::collections::{BTreeMap, HashMap};

use super::metadata::SiteInput;
use crate::exec::segments::{LinearInput, Segment, Segments};
use crate::ir::site::sites;
use crate::ir::{Module, OpId, OpKind};

/// All sums of a run.
pub struct Plan {
    /// Those of each segment.
    pub segments: Vec<SegmentPlan>,
    /// For each site by name, which sums are of its input.
    pub sites: BTreeMap<String, SiteInput>,
}

/// Sums of one segment.
#[derive(Default)]
pub struct SegmentPlan {
    /// Sums over inputs of linears.
    pub sums: Vec<SumPlan>,
    /// The sum that an op's input goes to.
    pub at: HashMap<OpId, usize>,
    /// Sums of sums: over the experts of a mixture.
    pub pools: Vec<PoolPlan>,
    /// Token counts of mixtures.
    pub mixtures: Vec<MixturePlan>,
}

/// One sum.
pub struct SumPlan {
    /// Its name in the file: that of the first site.
    pub key: String,
    /// Width of the input.
    pub width: usize,
}

/// The sum over all experts.
pub struct PoolPlan {
    /// Its name in the file.
    pub key: String,
    /// The experts' sums (indices in [`SegmentPlan::sums`]), all of one width.
    pub members: Vec<usize>,
}

/// A mixture's counts.
pub struct MixturePlan {
    /// Their name in the file.
    pub key: String,
    /// The linears at which experts are counted.
    pub counted_at: HashMap<OpId, usize>,
    /// Number of experts.
    pub experts: usize,
}

/// Finds names for what the segments' linears take.
pub fn plan(module: &Module, segments: &Segments) -> Plan {
    let mut names: HashMap<OpId, String> = HashMap::new();
    for site in sites(module) {
        let users = site.users.iter().filter(|user| user.graph == 0);
        for user in users {
            let op = module.op(*user);
            if op.is_some_and(|op| matches!(op.kind, OpKind::Linear(_))) {
                names.insert(user.op, site.name.clone());
            }
        }
    }
    let mut planner = Planner {
        module,
        names,
        taken: HashMap::new(),
        sites: BTreeMap::new(),
    };
    let segments = segments.list.iter().map(|s| planner.segment(s)).collect();
    Plan {
        segments,
        sites: planner.sites,
    }
}

struct Planner<'a> {
    module: &'a Module,
    names: HashMap<OpId, String>,
    taken: HashMap<String, usize>,
    sites: BTreeMap<String, SiteInput>,
}

impl Planner<'_> {
    fn segment(&mut self, segment: &Segment) -> SegmentPlan {
        let mut plan = SegmentPlan::default();
        for mixture in &segment.mixtures {
            let key = self.unique(&format!("{}.experts", self.op_name(mixture.op)));
            let counted = mixture.counted_at.iter().enumerate();
            plan.mixtures.push(MixturePlan {
                key: key.clone(),
                counted_at: counted.filter_map(|(e, op)| Some(((*op)?, e))).collect(),
                experts: mixture.counted_at.len(),
            });
            for (e, op) in mixture
                .linears
                .iter()
                .enumerate()
                .flat_map(|(e, ops)| ops.iter().map(move |op| (e, op)))
            {
                if let Some(name) = self.names.get(op) {
                    let site = self.sites.entry(name.clone()).or_default();
                    site.expert = Some((key.clone(), e));
                }
            }
        }
        let mut pools: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for input in &segment.inputs {
            let index = self.sum(&mut plan, input);
            if let Some((mixture, _, inner)) = input.expert {
                pools.entry((mixture, inner)).or_default().push(index);
            }
        }
        for ((mixture, inner), members) in pools {
            self.pool(&mut plan, segment, (mixture, inner), members);
        }
        plan
    }

    fn sum(&mut self, plan: &mut SegmentPlan, input: &LinearInput) -> usize {
        let index = plan.sums.len();
        let first = input.linears.iter().find_map(|op| self.names.get(op));
        let first = first.cloned().unwrap_or_else(|| self.op_name(input.first));
        let key = self.unique(&first);
        for name in input.linears.iter().filter_map(|op| self.names.get(op)) {
            self.sites
                .entry(name.clone())
                .or_default()
                .inputs
                .push(key.clone());
        }
        plan.at.insert(input.first, index);
        plan.sums.push(SumPlan {
            key,
            width: input.width,
        });
        index
    }

    fn pool(
        &mut self,
        plan: &mut SegmentPlan,
        segment: &Segment,
        (mixture, inner): (usize, usize),
        members: Vec<usize>,
    ) {
        let width = |&m: &usize| plan.sums.get(m).map(|s| s.width);
        let first = members.first().and_then(width);
        if members.iter().any(|m| width(m) != first) {
            return;
        }
        let op = segment
            .mixtures
            .get(mixture)
            .map_or_else(String::new, |m| self.op_name(m.op));
        let key = self.unique(&format!("{op}.pool.{inner}"));
        let of_pool = |input: &&LinearInput| {
            input
                .expert
                .is_some_and(|(m, _, i)| (m, i) == (mixture, inner))
        };
        for op in segment
            .inputs
            .iter()
            .filter(of_pool)
            .flat_map(|i| &i.linears)
        {
            if let Some(name) = self.names.get(op) {
                self.sites.entry(name.clone()).or_default().pool = Some(key.clone());
            }
        }
        plan.pools.push(PoolPlan { key, members });
    }

    fn op_name(&self, op: OpId) -> String {
        let name = self
            .module
            .graphs
            .first()
            .and_then(|g| g.op(op))
            .map(|op| op.name.clone());
        match name.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None => op.to_string(),
        }
    }

    fn unique(&mut self, name: &str) -> String {
        let count = self.taken.entry(name.to_string()).or_insert(0);
        *count += 1;
        match *count {
            1 => name.to_string(),
            n => format!("{name}#{n}"),
        }
    }
}
