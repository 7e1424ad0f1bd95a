//! safetensors checkpoints: `config.json` chooses the family, the family builds the graph.
//!
//! A family is a small file that says which choices of the shared `decoder` it makes, or that
//! builds its own graph. Every tensor that a graph needs is asked for by name and shape, so that one
//! message lists all that don't fit. Structure and defaults follow the classes of `transformers`.

mod bert;
mod builder;
pub mod config;
mod decoder;
mod experts;
mod gemma2;
mod gemma3;
mod gpt2;
mod llama;
mod mistral;
mod mixtral;
mod quantized;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rope;
mod tensors;
mod unknown;

use std::path::{Path, PathBuf};

use super::{Format, ImportError, Imported, Result, folder_of, shown, sidecars};
use crate::ir::site::{Site, sites};
use crate::ir::{Attr, Attrs, Module};
use crate::weights::{Checkpoint, DType, FileCache};
use builder::Builder;
use config::{Config, Fields};
use decoder::Decoder;
use tensors::Tensors;

/// Most layers that a configuration without weights may imply, and most experts of all layers.
const MAX_IMPLIED: u64 = 1 << 16;

/// Why a family didn't build a graph.
enum Stop {
    /// The input is at fault.
    Fault(ImportError),
    /// The configuration asks for something that the IR can't say.
    Unsupported(String),
}

impl From<ImportError> for Stop {
    fn from(error: ImportError) -> Self {
        Stop::Fault(error)
    }
}

fn unsupported<T>(what: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Unsupported(what.into()))
}

/// How a family makes its graph.
#[derive(Clone, Copy)]
enum Build {
    /// The shared decoder, with these choices.
    Decoder(fn(&Fields<'_>) -> Result<Decoder, Stop>),
    /// A graph of its own; the text is the architecture's name.
    Own(fn(&mut Builder, &Fields<'_>, &str) -> Result<(), Stop>),
}

/// Families by `model_type` and by how the names of their classes begin.
const FAMILIES: [(&str, &str, Build); 11] = [
    ("llama", "Llama", Build::Decoder(llama::read)),
    ("mistral", "Mistral", Build::Decoder(mistral::read)),
    ("mixtral", "Mixtral", Build::Decoder(mixtral::read)),
    ("qwen2", "Qwen2", Build::Decoder(qwen2::read)),
    ("qwen3", "Qwen3", Build::Decoder(qwen3::read)),
    ("qwen3_moe", "Qwen3Moe", Build::Decoder(qwen3_moe::read)),
    ("gemma2", "Gemma2", Build::Decoder(gemma2::read)),
    ("gemma3_text", "Gemma3", Build::Decoder(gemma3::read)),
    ("gemma3", "Gemma3", Build::Decoder(gemma3::read)),
    ("gpt2", "GPT2", Build::Own(gpt2::build)),
    ("bert", "Bert", Build::Own(bert::build)),
];

/// Imports a folder, a `.safetensors` file, or the `.index.json` of shards.
pub(super) fn open(path: &Path, cache: &FileCache) -> Result<Imported> {
    let folder = if path.is_dir() {
        path.to_path_buf()
    } else {
        folder_of(path)
    };
    let config_path = folder.join("config.json");
    let mut notes = Vec::new();
    let config = if is_one_of_several(path) {
        notes.push(format!(
            "{}: one shard of several; its matrices are imported without their architecture (name \
             the folder or the index for the whole model)",
            path.display()
        ));
        None
    } else if config_path.is_file() {
        Some(Config::read(&config_path)?)
    } else {
        notes.push(format!(
            "{}: no config.json beside the weights, so the architecture isn't known: matrices are \
             imported by themselves; weight passes and output work",
            path.display()
        ));
        None
    };
    let checkpoint = Checkpoint::open(path, cache)?;
    quantized::refuse(path, config.as_ref(), &checkpoint)?;
    if !checkpoint.unlisted.is_empty() {
        let count = checkpoint.unlisted.len();
        notes.push(format!(
            "{count} tensors of the shards aren't in the index; they are kept"
        ));
    }
    let mut module = graph(path, config.as_ref(), Tensors::of(&checkpoint), &mut notes)?;
    module.name = module_name(path);
    module.base_dir = folder.clone();
    let mut files: Vec<PathBuf> = checkpoint.index.iter().cloned().collect();
    files.extend(
        checkpoint
            .shards
            .iter()
            .map(|shard| folder.join(&shard.name)),
    );
    files.extend(config.iter().map(|config| config.path.clone()));
    Ok(Imported {
        files,
        sidecars: if config.is_some() {
            sidecars(&folder)?
        } else {
            Vec::new()
        },
        notes,
        ..Imported::bare(module, Format::Safetensors)
    })
}

/// The module that a configuration implies: all of its ops, weights without data.
///
/// For planning by shapes alone. Tensors have the type of `dtype` or `torch_dtype`, else f32; experts
/// are taken one by one.
///
/// # Errors
/// [`ImportError::Config`] where a field is wrong, or the architecture isn't known.
pub fn implied(config: &Config) -> Result<Module> {
    let fields = config.fields();
    let dtype = match fields.text("dtype")? {
        Some(name) => Some(name),
        None => fields.text("torch_dtype")?,
    };
    let dtype = match dtype {
        None | Some("float32") => DType::F32,
        Some("bfloat16") => DType::BF16,
        Some("float16") => DType::F16,
        Some("float64") => DType::F64,
        Some(other) => {
            let problem = format!("is `{other}`, expected float32, float16 or bfloat16");
            return Err(ImportError::config(&config.path, "torch_dtype", problem));
        }
    };
    let Some(family) = Family::of(config)? else {
        let problem = "names no architecture that is known";
        return Err(ImportError::config(&config.path, "architectures", problem));
    };
    let mut builder = Builder::new(Tensors::implied(dtype));
    match family.build(&mut builder, config) {
        Ok(()) => {}
        Err(Stop::Fault(error)) => return Err(error),
        Err(Stop::Unsupported(what)) => {
            let problem = format!("{} with {what} is not supported", family.architecture);
            return Err(ImportError::config(&config.path, "", problem));
        }
    }
    let mut module = finish(builder, &config.path, &family.architecture)?;
    module.meta = family.meta(config)?;
    Ok(crate::ir::patch::normalize(&module))
}

/// Shapes and roles of the matrices that a configuration implies.
///
/// # Errors
/// As [`implied`].
pub fn implied_sites(config: &Config) -> Result<Vec<Site>> {
    Ok(sites(&implied(config)?))
}

/// The graph of a checkpoint: its architecture's, or free-standing matrices.
fn graph(
    path: &Path,
    config: Option<&Config>,
    tensors: Tensors,
    notes: &mut Vec<String>,
) -> Result<Module> {
    let family = match config {
        Some(config) => Family::of(config)?,
        None => None,
    };
    let mut builder = Builder::new(tensors);
    let reason = match (&family, config) {
        (Some(family), Some(config)) => match family.build(&mut builder, config) {
            Ok(()) => {
                let layers = builder.tensors.surplus.take();
                let mut module = finish_noting(builder, path, &family.architecture, notes)?;
                notes.extend(layers);
                module.meta = family.meta(config)?;
                return Ok(module);
            }
            Err(Stop::Fault(error)) => return Err(error),
            Err(Stop::Unsupported(what)) => {
                format!("{} with {what} is not supported", family.architecture)
            }
        },
        (None, Some(config)) => {
            let fields = config.fields();
            let named = fields
                .texts("architectures")?
                .and_then(|a| a.first().copied());
            let named = named
                .or(fields.text("model_type")?)
                .unwrap_or("without a name");
            format!("the architecture {} is not known", shown(named))
        }
        _ => String::new(),
    };
    if !reason.is_empty() {
        notes.push(format!(
            "{reason}: matrices are imported by themselves; weight passes and output work"
        ));
    }
    // What a family made before it stopped is left behind.
    let mut builder = Builder::new(builder.finish().1.unused_again());
    if unknown::build(&mut builder) == 0 {
        notes.push("no tensor is a matrix of floats: there is nothing to compress".to_string());
    }
    let mut module = finish(builder, path, "no architecture")?;
    let mut meta = Attrs::new();
    meta.set("format", Attr::str("safetensors"));
    module.meta = meta;
    Ok(module)
}

/// The module of a finished graph, and a note of the tensors that it doesn't use.
fn finish_noting(
    builder: Builder,
    path: &Path,
    architecture: &str,
    notes: &mut Vec<String>,
) -> Result<Module> {
    const LISTED: usize = 6;
    let unused = builder.tensors.unused();
    let module = finish(builder, path, architecture)?;
    let total: usize = unused.iter().map(|(_, count)| count).sum();
    if total > 0 {
        let shown = unused.iter().take(LISTED).map(|(name, count)| match count {
            1 => name.clone(),
            n => format!("{name} (×{n})"),
        });
        let mut shown = shown.collect::<Vec<_>>().join(", ");
        if unused.len() > LISTED {
            shown.push_str(", …");
        }
        notes.push(format!(
            "{total} tensors have no place in {architecture}; kept as they are: {shown}"
        ));
    }
    Ok(module)
}

fn finish(builder: Builder, path: &Path, architecture: &str) -> Result<Module> {
    let (graph, tensors) = builder.finish();
    if !tensors.problems.is_empty() {
        return Err(ImportError::Tensors {
            path: path.to_path_buf(),
            architecture: architecture.to_string(),
            problems: tensors.problems,
        });
    }
    Ok(Module {
        weights: tensors.weights,
        graphs: vec![graph],
        ..Module::default()
    })
}

/// A family chosen by a configuration.
struct Family {
    /// The first of `architectures`, or else the `model_type`.
    architecture: String,
    model_type: &'static str,
    build: Build,
}

impl Family {
    fn of(config: &Config) -> Result<Option<Self>> {
        let fields = config.fields();
        let architecture = fields
            .texts("architectures")?
            .and_then(|a| a.first().copied());
        let model_type = fields.text("model_type")?;
        // `Qwen3MoeForCausalLM` is not of `Qwen3`: what follows must be the kind of model.
        let of_class = |class: &str| match architecture.map(|a| a.strip_prefix(class)) {
            None => true,
            Some(None) => false,
            Some(Some("Model" | "TextModel" | "DoubleHeadsModel")) => true,
            Some(Some(kind)) => kind.starts_with("For") || kind.starts_with("LMHead"),
        };
        let by_type = FAMILIES
            .iter()
            .find(|(name, class, _)| Some(*name) == model_type && of_class(class));
        let by_class = || FAMILIES.iter().find(|(_, class, _)| of_class(class));
        let found = by_type.or_else(|| architecture.and_then(|_| by_class()));
        Ok(found.map(|(name, _, build)| Family {
            architecture: shown(architecture.unwrap_or(name)),
            model_type: name,
            build: *build,
        }))
    }

    /// The fields that describe the text model.
    fn fields<'a>(&self, config: &'a Config) -> Result<Fields<'a>> {
        let fields = config.fields();
        let nested = match self.model_type.starts_with("gemma3") {
            true => fields.object("text_config")?,
            false => None,
        };
        Ok(nested.unwrap_or(fields))
    }

    fn build(&self, b: &mut Builder, config: &Config) -> Result<(), Stop> {
        let fields = self.fields(config)?;
        match self.build {
            Build::Own(build) => build(b, &fields, &self.architecture),
            Build::Decoder(read) => {
                let decoder = read(&fields)?;
                let layout = self.layout(b, &decoder);
                layers_present(
                    b,
                    &format!("{}layers.", layout.prefix),
                    decoder.layers,
                    &fields,
                )?;
                let experts = decoder.experts.as_ref().map_or(0, |e| e.count);
                if experts.saturating_mul(decoder.layers) > MAX_IMPLIED {
                    let local = fields.has("num_local_experts");
                    let name = if local {
                        "num_local_experts"
                    } else {
                        "num_experts"
                    };
                    let problem = format!("is {experts}: more than {MAX_IMPLIED} in all layers");
                    return Err(fields.fault(name, problem).into());
                }
                decoder::build(b, &decoder, &layout);
                Ok(())
            }
        }
    }

    /// Where a decoder's names start, by what the checkpoint has.
    fn layout(&self, b: &Builder, decoder: &Decoder) -> decoder::Layout<'static> {
        const PREFIXES: [&str; 4] = [
            "model.",
            "",
            "language_model.model.",
            "model.language_model.",
        ];
        let table = |prefix: &&str| b.tensors.has(&format!("{prefix}embed_tokens.weight"), true);
        let prefix = PREFIXES.into_iter().find(table).unwrap_or("model.");
        let mut heads = ["lm_head", "language_model.lm_head"].into_iter();
        let head = heads.find(|h| b.tensors.has(&format!("{h}.weight"), !decoder.tied));
        let ends = ["ForCausalLM", "ForConditionalGeneration"];
        let class = ends.iter().any(|end| self.architecture.ends_with(end));
        // A `model_type` alone doesn't say; a head or a tied table does.
        let class = class || self.architecture == self.model_type;
        let bare = prefix.is_empty() && !decoder.tied;
        decoder::Layout {
            prefix,
            head,
            causal: head.is_some() || class && !bare,
        }
    }

    /// The module's header.
    fn meta(&self, config: &Config) -> Result<Attrs> {
        let mut meta = Attrs::new();
        meta.set("format", Attr::str("safetensors"));
        meta.set("architecture", Attr::str(&self.architecture));
        meta.set("model_type", Attr::str(self.model_type));
        let fields = self.fields(config)?;
        let context = match fields.count("max_position_embeddings")? {
            Some(context) => Some(context),
            None => fields.count("n_positions")?,
        };
        let context = match (self.build, context) {
            (Build::Decoder(read), Some(given)) => match read(&fields) {
                Ok(decoder) => Some(decoder.rope.reach().unwrap_or(0).max(given)),
                Err(_) => Some(given),
            },
            (_, context) => context,
        };
        if let Some(context) = context.and_then(|c| i64::try_from(c).ok()) {
            meta.set("max_positions", Attr::Int(context));
        }
        Ok(meta)
    }
}

/// Checks the number of layers against the names of the tensors, before a layer is built.
fn layers_present(b: &mut Builder, prefix: &str, layers: u64, f: &Fields<'_>) -> Result<(), Stop> {
    if b.tensors.is_implied() {
        if layers > MAX_IMPLIED {
            let problem = format!("is {layers}; at most {MAX_IMPLIED} layers are planned");
            return Err(f.fault("num_hidden_layers", problem).into());
        }
        return Ok(());
    }
    let present = b.tensors.numbered(prefix);
    if layers > present {
        let problem = format!("gives {layers} layers, the tensors are of {present} ({prefix}*)");
        let name = if f.has("n_layer") {
            "n_layer"
        } else {
            "num_hidden_layers"
        };
        return Err(f.fault(name, problem).into());
    }
    if present > layers {
        b.tensors.surplus = Some(format!(
            "config.json gives {layers} layers, the tensors are of {present}: the later ones are \
             kept as they are"
        ));
    }
    Ok(())
}

/// Whether the file is called like one shard of several.
fn is_one_of_several(path: &Path) -> bool {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let Some((before, count)) = name.rsplit_once("-of-") else {
        return false;
    };
    let number = |text: &str| text.parse::<u32>().ok();
    let shard = path.extension().is_some_and(|e| e == "safetensors") && !path.is_dir();
    shard
        && before.rsplit('-').next().and_then(number).is_some()
        && number(count).is_some_and(|n| n > 1)
}

/// The folder's or file's name without what its format adds.
fn module_name(path: &Path) -> String {
    let named = match path.file_name() {
        Some(_) => path.to_path_buf(),
        None => path.canonicalize().unwrap_or_default(),
    };
    let name = named.file_name().unwrap_or_default().to_string_lossy();
    let ends = [".safetensors.index.json", ".safetensors"];
    let stem = ends
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .unwrap_or(&name);
    match stem {
        "" => "model".to_string(),
        stem => stem.to_string(),
    }
}

#[cfg(test)]
mod tests;
