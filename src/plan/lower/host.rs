//! Steps and buffers of weights that are kept on the host.

use crate::plan::{Place, Plan, Value, arena, cost};

/// Steps whose weights are on the host run there, and buffers that they use are seen by both.
pub(super) fn host_buffers(plan: &mut Plan) {
    let place = |plan: &Plan, step: &crate::plan::Step| {
        let host = step.args.iter().any(|(_, v)| match v {
            Value::Section { weight, .. } => {
                plan.weight(weight).is_some_and(|w| w.place == Place::Host)
            }
            _ => false,
        });
        if host { Place::Host } else { Place::Device }
    };
    let mut shared: Vec<String> = Vec::new();
    for program in 0..plan.programs.len() {
        for step in 0..plan.programs[program].steps.len() {
            let found = place(plan, &plan.programs[program].steps[step]);
            let target = plan.target.clone();
            let one = &mut plan.programs[program].steps[step];
            one.place = found;
            if found == Place::Host {
                let (bytes, flops) = (one.estimate.bytes, one.estimate.flops);
                one.estimate = cost::estimate(&target, Place::Host, bytes, flops, false);
                let uses = arena::uses(one, &plan.kernels);
                shared.extend(uses.into_iter().map(|u| u.name));
            }
        }
    }
    let mark = |buffers: &mut Vec<crate::plan::Buffer>| {
        for buffer in buffers.iter_mut().filter(|b| shared.contains(&b.name)) {
            buffer.place = Place::Host;
        }
    };
    mark(&mut plan.persistent);
    plan.programs.iter_mut().for_each(|p| mark(&mut p.buffers));
    for program in &mut plan.programs {
        let scalars = program.captures.first().map(|c| c.scalars.clone());
        program.captures = super::program::captures(&program.steps, &scalars.unwrap_or_default());
    }
}
