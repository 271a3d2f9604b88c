//! The public API of this crate, one item a line, matches `docs/public-api.txt`: a change of it is visible in
//! review. `make public-api` regenerates the file.
//!
//! The listing is read from the sources, so that it is the same with every compiler: it follows each `pub`
//! from the root, also into the crates whose items are re-exported, with all features on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use expect_test::expect_file;
use syn::punctuated::Punctuated;
use syn::{
    Attribute, Block, Fields, FieldsNamed, FieldsUnnamed, ImplItem, Item, Meta, Signature, Token, TraitItem,
    Type, UseTree, Visibility,
};

const CRATES: [&str; 3] = ["raftify", "raftify_core", "raftify_storage"];

#[test]
fn public_api_is_the_listed_one() {
    let mut sources = Sources::default();
    for name in CRATES {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name.replace('_', "-")).join("src/lib.rs");
        sources.load_file(&[name.to_owned()], &root, &root.with_file_name(""));
    }
    let mut listing = Listing { sources: &sources, listed: BTreeMap::new(), lines: BTreeSet::new() };
    listing.module("raftify", &["raftify".to_owned()]);
    let text: String = listing.lines.iter().map(|(_, line)| format!("{line}\n")).collect();
    expect_file!["../../../docs/public-api.txt"].assert_eq(&text);
}

/// A module, as the names from the root of its crate on.
type ModulePath = Vec<String>;

/// All modules of the crates.
#[derive(Default)]
struct Sources(BTreeMap<ModulePath, Vec<Item>>);

impl Sources {
    fn load_file(&mut self, path: &[String], file: &Path, children: &Path) {
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.load_items(path, parsed.items, children);
    }

    fn load_items(&mut self, path: &[String], items: Vec<Item>, children: &Path) {
        for item in &items {
            let Item::Mod(module) = item else { continue };
            if !is_built(&module.attrs) {
                continue;
            }
            let name = module.ident.to_string();
            let (inner, folder) = ([path, std::slice::from_ref(&name)].concat(), children.join(&name));
            match &module.content {
                Some((_, items)) => self.load_items(&inner, items.clone(), &folder),
                None => {
                    let file: PathBuf = children.join(format!("{name}.rs"));
                    let file = if file.exists() { file } else { folder.join("mod.rs") };
                    self.load_file(&inner, &file, &folder);
                }
            }
        }
        self.0.insert(path.to_vec(), items.into_iter().filter(|item| is_built(attributes(item))).collect());
    }

    /// Where the name that `path` refers to in `module` is defined.
    fn resolve(&self, module: &[String], path: &[String]) -> Option<(ModulePath, String)> {
        let (first, rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => vec![module[0].clone()],
            "self" => module.to_vec(),
            "super" => module[..module.len() - 1].to_vec(),
            name if CRATES.contains(&name) => vec![name.to_owned()],
            _ => return self.find(module, path),
        };
        if let Some((_, after)) = rest.split_first().filter(|(next, _)| *next == "super") {
            at.pop();
            return self.resolve(&at, &[&["self".to_owned()], after].concat());
        }
        if rest.is_empty() { None } else { self.find(&at, rest) }
    }

    fn find(&self, module: &[String], path: &[String]) -> Option<(ModulePath, String)> {
        let (first, rest) = path.split_first()?;
        let inner = [module, std::slice::from_ref(first)].concat();
        if !rest.is_empty() && self.0.contains_key(&inner) {
            return self.find(&inner, rest);
        }
        for item in self.0.get(module)? {
            match item {
                Item::Use(item) => {
                    for (name, target) in uses(&item.tree, &[]) {
                        if name == *first && target != path {
                            return self.resolve(module, &[&target[..], rest].concat());
                        }
                    }
                }
                item if rest.is_empty() && name_of(item).is_some_and(|name| name == *first) => {
                    return Some((module.to_vec(), first.clone()));
                }
                _ => {}
            }
        }
        None
    }
}

/// Whether an item exists when all features are on, outside of tests.
fn is_built(attrs: &[Attribute]) -> bool {
    attrs
        .iter()
        .filter(|attr| attr.path().is_ident("cfg"))
        .all(|attr| attr.parse_args::<Meta>().is_ok_and(|condition| holds(&condition)))
}

fn holds(condition: &Meta) -> bool {
    let parts = |list: &syn::MetaList| {
        let parts = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
        parts.expect("a condition that compiles").into_iter()
    };
    match condition {
        Meta::Path(path) => path.is_ident("unix") || path.is_ident("debug_assertions"),
        Meta::NameValue(pair) => pair.path.is_ident("feature"),
        Meta::List(list) if list.path.is_ident("not") => !parts(list).all(|part| holds(&part)),
        Meta::List(list) if list.path.is_ident("any") => parts(list).any(|part| holds(&part)),
        Meta::List(list) => parts(list).all(|part| holds(&part)),
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name_of(item: &Item) -> Option<String> {
    match item {
        Item::Const(item) => Some(item.ident.to_string()),
        Item::Enum(item) => Some(item.ident.to_string()),
        Item::Fn(item) => Some(item.sig.ident.to_string()),
        Item::Struct(item) => Some(item.ident.to_string()),
        Item::Trait(item) => Some(item.ident.to_string()),
        Item::Type(item) => Some(item.ident.to_string()),
        _ => None,
    }
}

/// The names that a `use` imports, each with its target.
fn uses(tree: &UseTree, before: &[String]) -> Vec<(String, Vec<String>)> {
    let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
    match tree {
        UseTree::Path(path) => uses(&path.tree, &with(&path.ident)),
        UseTree::Name(name) if name.ident == "self" => {
            before.last().map(|name| (name.clone(), before.to_vec())).into_iter().collect()
        }
        UseTree::Name(name) => vec![(name.ident.to_string(), with(&name.ident))],
        UseTree::Rename(rename) => vec![(rename.rename.to_string(), with(&rename.ident))],
        UseTree::Group(group) => group.items.iter().flat_map(|tree| uses(tree, before)).collect(),
        UseTree::Glob(_) => Vec::new(),
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_hidden(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| {
        attr.path().is_ident("doc")
            && attr.parse_args::<Meta>().is_ok_and(|meta| meta.path().is_ident("hidden"))
    })
}

struct Listing<'a> {
    sources: &'a Sources,
    /// The public name under which each definition is listed.
    listed: BTreeMap<(ModulePath, String), String>,
    /// Sorted by the path of each item.
    lines: BTreeSet<(String, String)>,
}

impl Listing<'_> {
    /// All public items of a module; its own items come before its submodules.
    fn module(&mut self, public: &str, module: &[String]) {
        let items = &self.sources.0[module];
        for item in items.iter().filter(|item| name_of(item).is_some()) {
            self.item(public, module, item, None);
        }
        // An item with two names is listed under the name of its definition.
        for renames in [false, true] {
            for item in items {
                let Item::Use(item) = item else { continue };
                if !is_public(&item.vis) || is_hidden(&item.attrs) {
                    continue;
                }
                for (name, target) in uses(&item.tree, &[]) {
                    if renames != target.ends_with(std::slice::from_ref(&name)) {
                        self.used(&format!("{public}::{name}"), module, &target);
                    }
                }
            }
        }
        for item in items {
            if let Item::Mod(item) = item
                && is_public(&item.vis)
                && !is_hidden(&item.attrs)
            {
                let (name, inner) = (format!("{public}::{}", item.ident), item.ident.to_string());
                self.add(format!("mod {name}"));
                self.module(&name, &[module, &[inner]].concat());
            }
        }
    }

    /// An item that is re-exported under another path.
    fn used(&mut self, public: &str, module: &[String], target: &[String]) {
        if let Some(path) = self.module_at(module, target) {
            self.add(format!("mod {public}"));
            return self.module(public, &path);
        }
        let Some((at, name)) = self.sources.resolve(module, target) else {
            self.add(format!("use {} as {public}", target.join("::")));
            return;
        };
        let items = self.sources.0[&at].iter();
        for item in items.filter(|item| name_of(item).as_ref() == Some(&name)) {
            let (parent, own) = public.rsplit_once("::").expect("a public path has a crate");
            self.item(parent, &at, item, Some(own));
        }
    }

    fn module_at(&self, module: &[String], target: &[String]) -> Option<ModulePath> {
        let path = match target[0].as_str() {
            "crate" => [&module[..1], &target[1..]].concat(),
            name if CRATES.contains(&name) => target.to_vec(),
            _ => [module, target].concat(),
        };
        self.sources.0.contains_key(&path).then_some(path)
    }

    fn item(&mut self, parent: &str, module: &[String], item: &Item, own: Option<&str>) {
        let Some(name) = name_of(item) else { return };
        let public = format!("{parent}::{}", own.unwrap_or(&name));
        let is_visible = own.is_some() || is_public(visibility(item));
        if !is_visible || is_hidden(attributes(item)) {
            return;
        }
        let definition = (module.to_vec(), name.clone());
        if let Some(first) = self.listed.get(&definition) {
            if *first != public {
                self.add(format!("use {first} as {public}"));
            }
            return;
        }
        self.listed.insert(definition.clone(), public.clone());
        self.define(&public, item);
        self.implementations(&public, &definition);
    }

    fn define(&mut self, public: &str, item: &Item) {
        let marks = marks(attributes(item));
        match item {
            Item::Const(item) => self.add(format!("const {public}: {}", type_text(&item.ty))),
            Item::Type(item) => {
                self.add(format!("type {public}{} = {}", generics(&item.generics), type_text(&item.ty)));
            }
            Item::Fn(item) => self.add(format!("fn {}", signature(public, &item.sig))),
            Item::Struct(item) => {
                self.add(format!("struct {public}{}{marks}", generics(&item.generics)));
                self.fields(public, &item.fields, false);
            }
            Item::Enum(item) => {
                self.add(format!("enum {public}{}{marks}", generics(&item.generics)));
                for variant in &item.variants {
                    let variant_path = format!("{public}::{}", variant.ident);
                    self.add(format!("variant {variant_path}"));
                    self.fields(&variant_path, &variant.fields, true);
                }
            }
            Item::Trait(item) => {
                let bounds: Vec<String> = item.supertraits.iter().map(text).collect();
                let bounds =
                    if bounds.is_empty() { String::new() } else { format!(": {}", bounds.join(" + ")) };
                self.add(format!("trait {public}{}{bounds}", generics(&item.generics)));
                for inner in &item.items {
                    match inner {
                        TraitItem::Fn(method) => {
                            let kind = if method.default.is_some() { "provided" } else { "required" };
                            let path = format!("{public}::{}", method.sig.ident);
                            self.add(format!("{kind} fn {}", signature(&path, &method.sig)));
                        }
                        TraitItem::Type(inner) => {
                            let bounds: Vec<String> = inner.bounds.iter().map(text).collect();
                            self.add(format!("type {public}::{}: {}", inner.ident, bounds.join(" + ")));
                        }
                        TraitItem::Const(inner) => {
                            self.add(format!("const {public}::{}: {}", inner.ident, type_text(&inner.ty)));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn fields(&mut self, public: &str, fields: &Fields, all: bool) {
        let named = match fields {
            Fields::Named(FieldsNamed { named: fields, .. })
            | Fields::Unnamed(FieldsUnnamed { unnamed: fields, .. }) => fields,
            Fields::Unit => return,
        };
        for (number, field) in named.iter().enumerate().filter(|(_, field)| all || is_public(&field.vis)) {
            let name = field.ident.as_ref().map_or_else(|| number.to_string(), ToString::to_string);
            self.add(format!("field {public}::{name}: {}", type_text(&field.ty)));
        }
    }

    /// Methods and traits of a type or trait, anywhere in its crate.
    fn implementations(&mut self, public: &str, definition: &(ModulePath, String)) {
        for (module, items) in self.sources.0.iter().filter(|(module, _)| module[0] == definition.0[0]) {
            for item in items {
                let Item::Impl(item) = item else { continue };
                let is_of = |path: &syn::Path| {
                    let path: Vec<String> = path.segments.iter().map(|part| part.ident.to_string()).collect();
                    path.last() == Some(&definition.1)
                        && self.sources.resolve(module, &path).as_ref() == Some(definition)
                };
                let is_of_self = matches!(&*item.self_ty, Type::Path(path) if is_of(&path.path));
                match &item.trait_ {
                    Some((_, name, _)) => {
                        let is_blanket = is_of(name) && !is_of_self;
                        if is_of_self || is_blanket {
                            let (name, own) = (text(name), type_text(&item.self_ty));
                            let line = format!("impl{} {name} for {own}", generics(&item.generics));
                            self.add(format!("{line}   ({public})"));
                        }
                    }
                    None if is_of_self => {
                        for inner in &item.items {
                            match inner {
                                ImplItem::Fn(method)
                                    if is_public(&method.vis) && !is_hidden(&method.attrs) =>
                                {
                                    let path = format!("{public}::{}", method.sig.ident);
                                    self.add(format!("fn {}", signature(&path, &method.sig)));
                                }
                                ImplItem::Const(inner) if is_public(&inner.vis) => {
                                    let of = type_text(&inner.ty);
                                    self.add(format!("const {public}::{}: {of}", inner.ident));
                                }
                                _ => {}
                            }
                        }
                    }
                    None => {}
                }
            }
        }
    }

    fn add(&mut self, line: String) {
        let about = line.rfind("raftify::").map_or("", |at| &line[at..]);
        let end = about.find(|letter: char| !letter.is_alphanumeric() && !"_:".contains(letter));
        let about = about[..end.unwrap_or(about.len())].trim_end_matches(':').to_owned();
        self.lines.insert((about, line));
    }
}

fn visibility(item: &Item) -> &Visibility {
    match item {
        Item::Const(item) => &item.vis,
        Item::Enum(item) => &item.vis,
        Item::Fn(item) => &item.vis,
        Item::Struct(item) => &item.vis,
        Item::Trait(item) => &item.vis,
        Item::Type(item) => &item.vis,
        _ => &Visibility::Inherited,
    }
}

/// Derived traits, and whether more fields or variants may be added.
fn marks(attrs: &[Attribute]) -> String {
    let mut derived = BTreeSet::new();
    let mut rest = String::new();
    for attr in attrs {
        if attr.path().is_ident("derive")
            && let Ok(paths) = attr.parse_args_with(Punctuated::<syn::Path, Token![,]>::parse_terminated)
        {
            derived.extend(paths.iter().map(text));
        }
        if attr.path().is_ident("non_exhaustive") {
            rest.push_str(" non_exhaustive");
        }
    }
    let derived: Vec<String> = derived.into_iter().collect();
    if derived.is_empty() { rest } else { format!("{rest} derive({})", derived.join(", ")) }
}

fn signature(path: &str, signature: &Signature) -> String {
    let mut shown = signature.clone();
    let name = shown.ident.to_string();
    for input in &mut shown.inputs {
        // Whether an argument is `mut` does not concern the caller.
        if let syn::FnArg::Typed(argument) = input
            && let syn::Pat::Ident(pattern) = &mut *argument.pat
        {
            pattern.mutability = None;
        }
    }
    let block = Box::new(Block { brace_token: syn::token::Brace::default(), stmts: Vec::new() });
    let item = syn::ItemFn { attrs: Vec::new(), vis: Visibility::Inherited, sig: shown, block };
    let text = pretty(Item::Fn(item));
    let text = text.trim_end_matches(['{', '}', ' ']);
    let (qualifiers, rest) = text.split_once(&format!("fn {name}")).expect("a function has its name");
    let qualifiers = qualifiers.trim();
    if qualifiers.is_empty() { format!("{path}{rest}") } else { format!("{path}{rest} [{qualifiers}]") }
}

fn type_text(of: &Type) -> String {
    let item: syn::ItemType = syn::parse_quote!(type T = #of;);
    pretty(Item::Type(item)).trim_start_matches("type T = ").trim_end_matches(';').to_owned()
}

fn generics(of: &syn::Generics) -> String {
    let clause = &of.where_clause;
    let item: syn::ItemStruct = syn::parse_quote!(struct T #of #clause {});
    pretty(Item::Struct(item)).trim_start_matches("struct T").trim_end_matches(['{', '}', ' ']).to_owned()
}

fn text(of: &impl quote::ToTokens) -> String {
    let tokens = of.to_token_stream().to_string();
    [
        (" :: ", "::"),
        (" <", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" ,", ","),
        (" ;", ";"),
        ("& ", "&"),
        ("( ", "("),
        (" )", ")"),
    ]
    .iter()
    .fold(tokens, |text, (spaced, tight)| text.replace(spaced, tight))
}

/// In one line.
fn pretty(item: Item) -> String {
    let file = syn::File { shebang: None, attrs: Vec::new(), items: vec![item] };
    let words: Vec<String> = prettyplease::unparse(&file).split_whitespace().map(str::to_owned).collect();
    words
        .join(" ")
        .replace("( ", "(")
        .replace(", )", ")")
        .replace("< ", "<")
        .replace(", >", ">")
        .replace(",>", ">")
}
