//! What a device leaves for weights.

use super::args::LoadArgs;
use crate::budget::running::{KvFormat, Load, Running, RunningError};
use crate::cli::{Exit, Failure};
use crate::ir::Module;
use crate::report::human;
use crate::store;

/// Tokens of a sequence, where nothing else is said.
const CONTEXT: u64 = 8192;
/// Tokens that go through the model at once.
const CHUNK: u64 = 512;
/// What driver, context and libraries take. On an H100 with CUDA 13 the driver keeps 480 MiB back and a
/// context takes 527.
const RESERVE: u64 = 1 << 30;

/// A device's memory and who gets it.
#[derive(Debug, Clone)]
pub struct Room {
    /// All of it.
    pub device: u64,
    /// Driver and context.
    pub reserve: u64,
    /// What shall be held.
    pub load: Load,
    /// What the model needs for that.
    pub running: Running,
}

impl Room {
    /// By the command line and the model's graph.
    ///
    /// # Errors
    /// An option that has no effect on this model, a context that it does not reach, a graph that says
    /// nothing of what it needs.
    pub fn of(args: &LoadArgs, module: &Module) -> Result<Self, Failure> {
        let running =
            Running::of(module, &store::shapes(module)).map_err(|error| unknown(&error))?;
        let usage = |what: String| Failure::new(Exit::Usage, what);
        let device = args.vram.ok_or_else(|| {
            usage("--vram is missing: the memory of the device".to_owned())
                .help("as --vram 24GiB; `nvidia-smi` says how much a card has")
        })?;
        if let (Some(most), Some(asked)) = (running.max_positions, args.ctx)
            && asked > most
        {
            let what = format!("--ctx {asked}: the model is made for {most} tokens at most");
            return Err(usage(what).help(format!("--ctx {most}, or less")));
        }
        let cacheless = [
            ("--kv", args.kv.is_some()),
            ("--chunk", args.chunk.is_some()),
        ];
        if let Some((option, _)) = cacheless.iter().find(|(_, given)| *given)
            && !running.is_causal()
        {
            let what = format!(
                "{option} would have no effect: the model keeps no keys and values from token to token"
            );
            return Err(
                usage(what).help("leave it out; --ctx and --batch say what goes through at once")
            );
        }
        let context = CONTEXT.min(running.max_positions.unwrap_or(CONTEXT));
        Ok(Self {
            device,
            reserve: args.reserve.unwrap_or(RESERVE),
            load: Load {
                context: args.ctx.unwrap_or(context),
                sequences: args.batch.unwrap_or(1),
                chunk: args.chunk.unwrap_or(CHUNK),
                kv: args.kv.map_or(KvFormat::F16, |kv| kv.format()),
            },
            running,
        })
    }

    /// The same for another context.
    fn at(&self, context: u64) -> Load {
        Load {
            context,
            ..self.load
        }
    }

    /// Bytes beside the weights at some load.
    fn beside(&self, load: &Load) -> u64 {
        let cache = self.running.cache_bytes(load);
        cache
            .saturating_add(self.running.workspace_bytes(load))
            .saturating_add(self.reserve)
    }

    /// Bytes of all but the weights.
    pub fn taken(&self) -> u64 {
        self.beside(&self.load)
    }

    /// Bytes that are left for weights; `None` where there is not even room for the rest.
    pub fn for_weights(&self) -> Option<u64> {
        self.device
            .checked_sub(self.taken())
            .filter(|&left| left > 0)
    }

    /// The longest context beside so many bytes of weights, the model's own at most.
    pub fn longest_context(&self, weights: u64) -> Option<u64> {
        let fits = |context: u64| {
            let all = self.beside(&self.at(context)).saturating_add(weights);
            all <= self.device
        };
        let most = self.most_context();
        if !fits(1) {
            return None;
        }
        let (mut least, mut beyond) = (1, most.saturating_add(1));
        while beyond - least > 1 {
            let middle = least + (beyond - least) / 2;
            match fits(middle) {
                true => least = middle,
                false => beyond = middle,
            }
        }
        Some(least)
    }

    /// The longest context that is looked at.
    pub fn most_context(&self) -> u64 {
        self.running.max_positions.unwrap_or(1 << 24).max(1)
    }

    /// The arithmetic in one line.
    pub fn line(&self) -> String {
        let cache = self.running.cache_bytes(&self.load);
        let workspace = self.running.workspace_bytes(&self.load);
        let each = match self.load.sequences {
            1 => format!("{} tokens", self.load.context),
            n => format!("{n} x {} tokens", self.load.context),
        };
        let cached = match self.running.is_causal() {
            true => format!(
                " - {} keys and values ({each}, {})",
                human::size(cache),
                self.load.kv.name()
            ),
            false => String::new(),
        };
        let left = match self.for_weights() {
            Some(left) => format!("{} for weights", human::size(left)),
            None => "nothing for weights".to_owned(),
        };
        format!(
            "{}{cached} - {} activations of {} tokens - {} reserve = {left}",
            human::size(self.device),
            human::size(workspace),
            self.running.tokens_at_once(&self.load),
            human::size(self.reserve),
        )
    }

    /// Why nothing is left, and what to do.
    pub fn too_small(&self) -> Failure {
        let what = format!("no room for weights: {}", self.line());
        let help = match self.running.is_causal() {
            true => "a shorter --ctx, a smaller --batch, or --kv q8 or q4 take less",
            false => "a shorter --ctx or a smaller --batch take less",
        };
        Failure::new(Exit::Infeasible, what).help(help)
    }
}

fn unknown(error: &RunningError) -> Failure {
    let what = format!("what the model needs beside its weights can't be told: {error}");
    Failure::new(Exit::Input, what).help(match error {
        RunningError::Unknown { .. } => "`hlrc-opt MODEL --dry-run` tells the sizes of weights",
        RunningError::NoGraph => {
            "its architecture has to be known: docs/models.md lists those that are"
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::running::CacheKind;

    fn room(window: Option<u64>) -> Room {
        let kind = CacheKind {
            heads: 8,
            head_dim: 128,
            window,
        };
        let running = Running {
            caches: [(kind, 10)].into(),
            values_per_token: 1000,
            logits: 5000,
            max_positions: Some(100_000),
        };
        Room {
            device: 1 << 30,
            reserve: 1 << 20,
            load: Load {
                context: 4096,
                sequences: 1,
                chunk: 256,
                kv: KvFormat::F16,
            },
            running,
        }
    }

    #[test]
    fn bytes_add_up() {
        let room = room(None);
        let cache = 10 * 2 * 8 * 128 * 2 * 4096;
        let workspace = 4 * (256 * 1000 + 5000);
        let all = cache + workspace + (1 << 20);
        assert_eq!(room.taken(), all);
        assert_eq!(room.for_weights(), Some((1 << 30) - all));
        let bytes = |kv: KvFormat| kv.bytes(128);
        let each = [KvFormat::F32, KvFormat::F16, KvFormat::Q8, KvFormat::Q4].map(bytes);
        assert_eq!(each, [512, 256, 136, 72]);
        // A head of 40 takes two groups of 32.
        assert_eq!(KvFormat::Q8.bytes(40), 68);
    }

    #[test]
    fn the_longest_context_is_the_last_that_fits() {
        let room = room(None);
        let weights = 500 << 20;
        let longest = room.longest_context(weights).expect("some");
        let at = |context| {
            let load = room.at(context);
            room.beside(&load) + weights
        };
        assert!(at(longest) <= room.device && at(longest + 1) > room.device);
        assert_eq!(room.longest_context(1 << 30), None);
        assert_eq!(room.longest_context(0).map(|n| n < 100_000), Some(true));
    }

    #[test]
    fn windows_bound_what_is_kept() {
        let room = room(Some(1024));
        let kept = 10 * 2 * 8 * 128 * 2 * (1024 + 256);
        assert_eq!(room.running.cache_bytes(&room.load), kept);
        assert_eq!(room.longest_context(0), Some(100_000));
    }
}
