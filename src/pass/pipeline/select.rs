//! Which step of a pipeline applies to which site.

use super::error::nearest;
use super::lex::keyword_hint;
use super::{Item, LayerRange, Override, PassCall, Pipeline, Scope, SyntaxError, preset};

pub use crate::ir::Role as SiteKind;
pub use crate::ir::site::layer_of;

/// What scopes are matched with: a site's name, layer and kinds.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The name as the user sees it.
    pub name: &'a str,
    /// The layer's number, if it has one; [`layer_of`] reads it from a name.
    pub layer: Option<u32>,
    /// What it is; a tied embedding is both embedding and head.
    pub kinds: &'a [SiteKind],
}

impl<'a> Site<'a> {
    /// A site whose layer is read from its name.
    pub fn new(name: &'a str, kinds: &'a [SiteKind]) -> Self {
        Self {
            name,
            layer: layer_of(name),
            kinds,
        }
    }

    /// Whether passes reach it without a scope that names it: a linear in every use.
    fn is_body(&self) -> bool {
        let body = |kind: &SiteKind| matches!(kind, SiteKind::Linear | SiteKind::Expert);
        self.kinds.iter().all(body)
    }
}

/// One pass of the flattened pipeline.
#[derive(Debug, Clone)]
pub struct Step {
    /// The pass and its options.
    pub call: PassCall,
    /// Scopes it stands in, outermost first; indices into the program's scopes.
    guards: Vec<usize>,
    /// The override it comes from; none for the main pipeline.
    from: Option<usize>,
}

impl Step {
    /// Whether it stands in a scope.
    pub fn is_scoped(&self) -> bool {
        !self.guards.is_empty()
    }

    /// Whether it comes from an override.
    pub fn is_override(&self) -> bool {
        self.from.is_some()
    }
}

/// A pipeline made ready to be asked what applies where.
#[derive(Debug, Clone)]
pub struct Program {
    steps: Vec<Step>,
    scopes: Vec<Compiled>,
    /// Indices of the overrides' scopes, in the order given.
    overrides: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Compiled {
    matcher: Matcher,
    /// As written, for messages.
    text: String,
    error: SyntaxError,
}

#[derive(Debug, Clone)]
enum Matcher {
    Layers(Vec<LayerRange>),
    Found(regex::Regex),
    Contains(String),
    Kind(SiteKind),
    /// Embeddings and head.
    Vocabulary,
    /// What none of these scopes selects.
    NoneOf(Vec<usize>),
}

/// Compiles a regular expression, its automaton bounded in size.
pub(super) fn compile(text: &str) -> Result<regex::Regex, String> {
    regex::RegexBuilder::new(text)
        .size_limit(1 << 20)
        .nest_limit(64)
        .build()
        .map_err(|error| {
            let last = error
                .to_string()
                .lines()
                .last()
                .unwrap_or_default()
                .trim()
                .to_owned();
            format!(
                "the regular expression is not valid: {}",
                last.trim_start_matches("error: ")
            )
        })
}

impl Program {
    /// Flattens a pipeline and its overrides; presets are replaced.
    ///
    /// # Errors
    /// A [`SyntaxError`] at an unknown preset or an expression that can't be compiled.
    pub fn new(pipeline: &Pipeline, overrides: &[Override]) -> Result<Self, SyntaxError> {
        let mut program = Self {
            steps: Vec::new(),
            scopes: Vec::new(),
            overrides: Vec::new(),
        };
        program.flatten(&preset::expand(pipeline)?, &[], None)?;
        for (index, override_) in overrides.iter().enumerate() {
            let override_ = preset::expand_override(override_)?;
            let scope = program.add(&override_.scope, &override_.span, &[])?;
            program.overrides.push(scope);
            program.flatten(&override_.body, &[scope], Some(index))?;
        }
        Ok(program)
    }

    fn flatten(
        &mut self,
        pipeline: &Pipeline,
        guards: &[usize],
        from: Option<usize>,
    ) -> Result<(), SyntaxError> {
        // Siblings first, so that `default` may stand before the scopes that it is the rest of.
        let mut own = Vec::with_capacity(pipeline.items.len());
        for item in &pipeline.items {
            own.push(match item {
                Item::Scope { scope, span, .. } if *scope != Scope::Default => {
                    Some(self.add(scope, span, &[])?)
                }
                _ => None,
            });
        }
        let named: Vec<usize> = own.iter().flatten().copied().collect();
        for (item, index) in pipeline.items.iter().zip(own) {
            match item {
                Item::Pass(call) => {
                    self.steps.push(Step {
                        call: call.clone(),
                        guards: guards.to_vec(),
                        from,
                    });
                }
                Item::Scope { scope, body, span } => {
                    let index = match index {
                        Some(index) => index,
                        None => self.add(scope, span, &named)?,
                    };
                    let inner: Vec<usize> = guards.iter().copied().chain([index]).collect();
                    self.flatten(body, &inner, from)?;
                }
                Item::Preset { .. } => {}
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        scope: &Scope,
        span: &super::Span,
        siblings: &[usize],
    ) -> Result<usize, SyntaxError> {
        let regex =
            |text: &str| compile(text).map_err(|error| span.error(error, "correct the expression"));
        let matcher = match scope {
            Scope::Layers(ranges) => Matcher::Layers(ranges.clone()),
            Scope::Regex(text) => Matcher::Found(regex(text)?),
            Scope::Name(text) if text.contains(['*', '?']) => Matcher::Found(regex(&glob(text))?),
            Scope::Name(text) => Matcher::Contains(text.clone()),
            Scope::Embeddings => Matcher::Kind(SiteKind::Embedding),
            Scope::Head => Matcher::Kind(SiteKind::Head),
            Scope::Experts => Matcher::Kind(SiteKind::Expert),
            Scope::Vocabulary => Matcher::Vocabulary,
            Scope::Default => Matcher::NoneOf(siblings.to_vec()),
        };
        let text = scope.to_string();
        let error = span.error(format!("the scope `{text}` selects nothing"), "");
        self.scopes.push(Compiled {
            matcher,
            text,
            error,
        });
        Ok(self.scopes.len() - 1)
    }

    /// All steps: the main pipeline's, then each override's.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Indices of the steps that apply to a site, in the order in which they run.
    pub fn steps_for(&self, site: &Site<'_>) -> Vec<usize> {
        let mut steps = self.selected(site);
        // A tied matrix in `embeddings(int8),head(int8)` is quantized once: the first scope counts.
        let first = steps.iter().find_map(|&step| self.kind_of(step));
        if let Some((first, _)) = first {
            steps.retain(|&step| self.kind_of(step).is_none_or(|(kind, _)| kind == first));
        }
        steps
    }

    /// Indices of all steps whose scopes select a site.
    fn selected(&self, site: &Site<'_>) -> Vec<usize> {
        let winner = self
            .overrides
            .iter()
            .rposition(|&scope| self.matches(scope, site));
        let applies = |step: &Step| {
            let named = step.guards.iter().any(|&scope| self.names_kind(scope));
            step.from == winner
                && (named || site.is_body())
                && step.guards.iter().all(|&scope| self.matches(scope, site))
        };
        self.steps
            .iter()
            .enumerate()
            .filter(|(_, step)| applies(step))
            .map(|(index, _)| index)
            .collect()
    }

    /// The kind, and the scope of that kind, that a step stands in.
    fn kind_of(&self, step: usize) -> Option<(SiteKind, usize)> {
        let guards = &self.steps.get(step)?.guards;
        guards
            .iter()
            .find_map(|&scope| match self.scopes.get(scope)?.matcher {
                Matcher::Kind(kind) => Some((kind, scope)),
                _ => None,
            })
    }

    /// Steps that scopes of a kind give a site, kind by kind.
    fn by_kind(&self, steps: &[usize]) -> Vec<(SiteKind, Vec<usize>)> {
        let mut found: Vec<(SiteKind, Vec<usize>)> = Vec::new();
        for &step in steps {
            let Some((kind, _)) = self.kind_of(step) else {
                continue;
            };
            match found.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, steps)) => steps.push(step),
                None => found.push((kind, vec![step])),
            }
        }
        found
    }

    /// Whether the scope can reach embeddings and head: it says which sites it means.
    fn names_kind(&self, scope: usize) -> bool {
        self.scopes.get(scope).is_some_and(|scope| {
            matches!(
                scope.matcher,
                Matcher::Found(_) | Matcher::Contains(_) | Matcher::Kind(_) | Matcher::Vocabulary
            )
        })
    }

    fn matches(&self, scope: usize, site: &Site<'_>) -> bool {
        let Some(scope) = self.scopes.get(scope) else {
            return false;
        };
        match &scope.matcher {
            Matcher::Layers(ranges) => site
                .layer
                .is_some_and(|layer| ranges.iter().any(|range| range.contains(layer))),
            Matcher::Found(regex) => regex.is_match(site.name),
            Matcher::Contains(text) => site.name.contains(text),
            Matcher::Kind(kind) => site.kinds.contains(kind),
            Matcher::Vocabulary => {
                let kinds = [SiteKind::Embedding, SiteKind::Head];
                site.kinds.iter().any(|kind| kinds.contains(kind))
            }
            Matcher::NoneOf(others) => !others.iter().any(|&other| self.matches(other, site)),
        }
    }

    /// Checks that every scope and override selects at least one of the sites, and that no site gets
    /// different passes as embedding and as head.
    ///
    /// # Errors
    /// A [`SyntaxError`] at the first that selects none, with what there is; `default` and `vocabulary` may be empty.
    pub fn check_matches(&self, sites: &[Site<'_>]) -> Result<(), SyntaxError> {
        for (index, scope) in self.scopes.iter().enumerate() {
            if matches!(scope.matcher, Matcher::NoneOf(_) | Matcher::Vocabulary)
                || sites.iter().any(|site| self.matches(index, site))
            {
                continue;
            }
            let mut error = scope.error.clone();
            error.help = no_match_help(scope, sites);
            return Err(error);
        }
        sites.iter().try_for_each(|site| self.check_tied(site))
    }

    /// Refuses what gives a matrix of two kinds, such as a tied embedding, two different treatments.
    fn check_tied(&self, site: &Site<'_>) -> Result<(), SyntaxError> {
        let groups = self.by_kind(&self.selected(site));
        let [(kind, steps), others @ ..] = groups.as_slice() else {
            return Ok(());
        };
        let calls = |steps: &[usize]| -> Vec<&PassCall> {
            let steps = steps.iter().filter_map(|&step| self.steps.get(step));
            steps.map(|step| &step.call).collect()
        };
        let Some((other, theirs)) = others.iter().find(|(_, t)| calls(t) != calls(steps)) else {
            return Ok(());
        };
        let scope = |steps: &[usize]| {
            let step = steps.first().copied()?;
            self.scopes.get(self.kind_of(step)?.1)
        };
        let (Some(first), Some(second)) = (scope(steps), scope(theirs)) else {
            return Ok(());
        };
        let listed = |steps: &[usize]| {
            let calls = calls(steps).into_iter().map(ToString::to_string);
            calls.collect::<Vec<_>>().join(",")
        };
        let (name, ours, theirs) = (site.name, listed(steps), listed(theirs));
        let mut error = second.error.clone();
        error.message = format!(
            "`{name}` is {} and {} in one matrix, and gets passes of both scopes: `{ours}` of `{}`, \
             `{theirs}` of `{}`",
            kind.name(),
            other.name(),
            first.text,
            second.text
        );
        error.help = format!(
            "leave one of the two scopes out, or say what this matrix gets: -t '{name}={ours}'"
        );
        Err(error)
    }
}

fn no_match_help(scope: &Compiled, sites: &[Site<'_>]) -> String {
    if sites.is_empty() {
        return "the model has no linears or embeddings that passes could work on".into();
    }
    match &scope.matcher {
        Matcher::Layers(_) => match (
            sites.iter().filter_map(|s| s.layer).min(),
            sites.iter().filter_map(|s| s.layer).max(),
        ) {
            (Some(first), Some(last)) => format!("the model has layers {first} to {last}"),
            _ => "no tensor's name carries a layer number".into(),
        },
        Matcher::Kind(_) => format!("the model has no {}", scope.text),
        _ => {
            let mut parts: Vec<&str> = sites
                .iter()
                .flat_map(|site| site.name.split(['.', '/']))
                .collect();
            parts.sort_unstable();
            parts.dedup();
            let near = nearest(&scope.text, parts).map(|name| format!("did you mean `{name}`?"));
            let example = sites.first().map_or("", |site| site.name);
            keyword_hint(&scope.text).or(near).unwrap_or_else(|| {
                format!("names look like `{example}`; `hlrc-opt inspect` lists them")
            })
        }
    }
}

/// A pattern with `*` and `?` as a regular expression for the whole name.
fn glob(text: &str) -> String {
    let mut out = String::from("^");
    for c in text.chars() {
        match c {
            '*' => out.push_str(".*"),
            '?' => out.push('.'),
            c => out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    out.push('$');
    out
}
