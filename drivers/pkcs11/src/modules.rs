//! The installed PKCS#11 modules: the configuration of p11-kit (`pkcs11.conf(5)`), read without
//! p11-kit.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::uri::Uri;

/// The name by which `enable-in` and `disable-in` know this program.
pub const PROGRAM: &str = "claviger";

/// A module in p11-kit's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configured {
    /// p11-kit's name of it: that of its configuration file without `.module`.
    pub name: String,
    /// Its file, as configured; links are not resolved, since their target may change.
    pub path: PathBuf,
    /// The reserved argument of `C_Initialize` (`x-init-reserved`).
    pub init_reserved: Option<String>,
}

impl Configured {
    /// A backend string that every token of this module matches.
    pub fn backend(&self) -> String {
        Uri {
            module_name: Some(self.name.clone()),
            ..Uri::default()
        }
        .to_string()
    }
}

/// The locations of p11-kit's configuration.
#[derive(Debug, Clone, Default)]
pub struct Locations {
    /// The administrator's `pkcs11.conf`.
    pub system_conf: PathBuf,
    /// The `.module` files that packages install.
    pub package_modules: PathBuf,
    /// The administrator's `.module` files.
    pub system_modules: PathBuf,
    /// The user's `pkcs11.conf`, if there is a user.
    pub user_conf: Option<PathBuf>,
    /// The user's `.module` files.
    pub user_modules: Option<PathBuf>,
    /// The folders of modules with relative paths; the first that has the file counts.
    pub libraries: Vec<PathBuf>,
}

impl Locations {
    /// The locations on this system, for the user of this process.
    ///
    /// As in p11-kit, root has no user configuration: behind `sudo`, the environment would name
    /// that of another user, and run that user's code.
    pub fn of_this_system() -> Self {
        let variable = |name| std::env::var_os(name);
        let user = match is_root() {
            true => None,
            false => user_folder(variable("XDG_CONFIG_HOME"), variable("HOME")),
        };
        let multiarch = format!("/usr/lib/{}-linux-gnu/pkcs11", std::env::consts::ARCH);
        Locations {
            system_conf: "/etc/pkcs11/pkcs11.conf".into(),
            package_modules: "/usr/share/p11-kit/modules".into(),
            system_modules: "/etc/pkcs11/modules".into(),
            user_conf: user.as_ref().map(|user| user.join("pkcs11.conf")),
            user_modules: user.map(|user| user.join("modules")),
            libraries: vec![
                multiarch.into(),
                "/usr/lib64/pkcs11".into(),
                "/usr/lib/pkcs11".into(),
            ],
        }
    }

    /// The files of [the modules](Locations::configured).
    pub fn modules(&self) -> Vec<PathBuf> {
        let configured = self.configured().into_iter();
        configured.map(|module| module.path).collect()
    }

    /// The modules to load, by descending `priority`, then by the names of their configuration
    /// files.
    ///
    /// A file of the same name overrides single settings: the user's file those of the
    /// administrator, and the administrator's those of the package. Modules that are blank, remote,
    /// only for trust policy, or not for this program are left out; so is Claviger's own.
    pub fn configured(&self) -> Vec<Configured> {
        let user = self.user_config();
        let mut configured: BTreeMap<String, Settings> = BTreeMap::new();
        let folders = [
            self.user_modules
                .as_ref()
                .filter(|_| user != UserConfig::None),
            Some(&self.system_modules).filter(|_| user != UserConfig::Only),
            Some(&self.package_modules).filter(|_| user != UserConfig::Only),
        ];
        for folder in folders.into_iter().flatten() {
            for (name, settings) in module_files(folder) {
                let known = configured.entry(name).or_default();
                for (key, value) in settings {
                    known.entry(key).or_insert(value);
                }
            }
        }
        let mut modules: Vec<(i64, Configured)> = configured
            .iter()
            .filter(|(_, settings)| wanted(settings) && !is_own(settings))
            .filter_map(|(file, settings)| {
                let reserved = settings.get("x-init-reserved");
                let module = Configured {
                    name: file.trim_end_matches(".module").into(),
                    path: self.library(settings.get("module")?)?,
                    init_reserved: reserved.filter(|text| !text.is_empty()).cloned(),
                };
                let priority = settings.get("priority").and_then(|p| p.parse().ok());
                Some((priority.unwrap_or(0), module))
            })
            .collect();
        // Stable, so that equal priorities stay in the order of their names.
        modules.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
        modules.into_iter().map(|(_, module)| module).collect()
    }

    fn user_config(&self) -> UserConfig {
        let read = |path: &Path| UserConfig::parse(settings(path).get("user-config")?);
        let system = read(&self.system_conf).unwrap_or(UserConfig::Merge);
        match (system, &self.user_conf) {
            (UserConfig::None, _) | (_, None) => system,
            (_, Some(path)) => read(path).unwrap_or(system),
        }
    }

    fn library(&self, module: &str) -> Option<PathBuf> {
        if module.is_empty() {
            return None;
        }
        let places = self.libraries.iter().map(|folder| folder.join(module));
        // An absolute path replaces what it is joined to.
        let mut places = places
            .chain([PathBuf::from(module)])
            .filter(|p| p.is_absolute());
        let first = places.next()?;
        match first.is_file() {
            true => Some(first),
            false => Some(places.find(|path| path.is_file()).unwrap_or(first)),
        }
    }
}

fn is_root() -> bool {
    #[cfg(unix)]
    return rustix::process::geteuid().is_root();
    #[cfg(not(unix))]
    return false;
}

/// The folder of a user's configuration of p11-kit (XDG Base Directory Specification 0.8).
fn user_folder(config_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let config = config_home
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(home?).join(".config")));
    Some(config?.join("pkcs11"))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum UserConfig {
    None,
    Merge,
    Only,
}

impl UserConfig {
    fn parse(value: &str) -> Option<Self> {
        match value {
            "none" => Some(UserConfig::None),
            "merge" => Some(UserConfig::Merge),
            "only" | "override" => Some(UserConfig::Only),
            _ => None,
        }
    }
}

type Settings = BTreeMap<String, String>;

/// The settings in a file; empty if there is no such file.
fn settings(path: &Path) -> Settings {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "cannot read configuration");
            }
            String::new()
        }
    };
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

fn module_files(folder: &Path) -> Vec<(String, Settings)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let named = |b: u8| b.is_ascii_alphanumeric() || b"_,.-".contains(&b);
            let fits = name.ends_with(".module")
                && name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.bytes().all(named);
            fits.then(|| (name, settings(&entry.path())))
        })
        .collect()
}

/// The module through which other programs use a daemon's identities: the daemon would ask itself.
const OWN: &str = "libclaviger_pkcs11_module.so";

fn is_own(settings: &Settings) -> bool {
    let module = settings.get("module").map(Path::new);
    module.is_some_and(|module| module.file_name().is_some_and(|name| name == OWN))
}

fn wanted(settings: &Settings) -> bool {
    let names = |key: &str| {
        let list = settings.get(key)?;
        let mut names = list.split(|c: char| c == ',' || c.is_whitespace());
        Some(names.any(|name| name == PROGRAM))
    };
    let yes = |key: &str| settings.get(key).is_some_and(|value| value == "yes");
    names("enable-in") != Some(false)
        && names("disable-in") != Some(true)
        && !yes("trust-policy")
        && !settings.contains_key("remote")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct System {
        root: tempfile::TempDir,
        places: Locations,
    }

    fn system() -> System {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let places = Locations {
            system_conf: at("etc/pkcs11.conf"),
            package_modules: at("share"),
            system_modules: at("etc/modules"),
            user_conf: Some(at("user/pkcs11.conf")),
            user_modules: Some(at("user/modules")),
            libraries: vec![at("lib64"), at("lib")],
        };
        for folder in ["share", "etc/modules", "user/modules", "lib64", "lib"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        System { root, places }
    }

    impl System {
        fn write(&self, name: &str, text: &str) {
            fs::write(self.root.path().join(name), text).unwrap();
        }

        fn modules(&self) -> Vec<String> {
            let root = format!("{}/", self.root.path().display());
            let paths = self.places.modules();
            let shown = paths.iter().map(|p| p.display().to_string());
            shown.map(|p| p.replace(&root, "@/")).collect()
        }
    }

    #[test]
    fn no_configuration_means_no_modules() {
        assert_eq!(Locations::default().modules(), Vec::<PathBuf>::new());
        assert!(system().modules().is_empty());
    }

    #[test]
    fn modules_are_sorted_by_priority_and_then_by_name() {
        let system = system();
        system.write("share/b.module", "# a comment\n\n module :  /m/b.so \n");
        system.write("share/a.module", "module: /m/a.so");
        system.write("etc/modules/z.module", "module: /m/z.so\npriority: 5");
        system.write("user/modules/y.module", "module: /m/y.so\npriority: -1");
        system.write("share/a.conf", "module: /m/no.so");
        system.write("share/.hidden.module", "module: /m/no.so");
        assert_eq!(
            system.modules(),
            ["/m/z.so", "/m/a.so", "/m/b.so", "/m/y.so"]
        );
    }

    #[test]
    fn a_relative_module_is_looked_for_in_the_folders_of_modules() {
        let system = system();
        system.write("share/a.module", "module: a.so");
        assert_eq!(system.modules(), ["@/lib64/a.so"]);
        system.write("lib/a.so", "");
        assert_eq!(system.modules(), ["@/lib/a.so"]);
        system.write("lib64/a.so", "");
        assert_eq!(system.modules(), ["@/lib64/a.so"]);
    }

    #[test]
    fn the_user_overrides_the_administrator_and_the_administrator_the_package() {
        let system = system();
        system.write("share/a.module", "module: /m/package.so\npriority: 1");
        system.write("share/b.module", "module: /m/b.so");
        system.write("etc/modules/a.module", "module: /m/admin.so");
        assert_eq!(system.modules(), ["/m/admin.so", "/m/b.so"]);
        system.write("user/modules/a.module", "module: /m/user.so");
        assert_eq!(system.modules(), ["/m/user.so", "/m/b.so"]);
        system.write("user/modules/a.module", "module:");
        assert_eq!(system.modules(), ["/m/b.so"]);
    }

    #[test]
    fn a_module_has_the_name_of_its_file_and_what_it_is_to_be_initialised_with() {
        let system = system();
        let argument = "configDir='sql:/db' flags=readOnly";
        let text = format!("module: /m/a.so\nx-init-reserved: {argument}");
        system.write("share/a.b.module", &text);
        system.write("share/c.module", "module: /m/c.so\nx-init-reserved:");
        let module = |name: &str, path: &str, reserved: Option<&str>| Configured {
            name: name.into(),
            path: path.into(),
            init_reserved: reserved.map(str::to_owned),
        };
        let expected = [
            module("a.b", "/m/a.so", Some(argument)),
            module("c", "/m/c.so", None),
        ];
        assert_eq!(system.places.configured(), expected);
        assert_eq!(expected[0].backend(), "pkcs11:?module-name=a.b");
    }

    #[test]
    fn root_has_no_configuration_of_a_user() {
        let text = |text: &str| Some(OsString::from(text));
        let folder = |path: &str| Some(PathBuf::from(path));
        let home = || text("/home/u");
        assert_eq!(user_folder(text("/c"), home()), folder("/c/pkcs11"));
        assert_eq!(
            user_folder(text("relative"), home()),
            folder("/home/u/.config/pkcs11")
        );
        assert_eq!(user_folder(None, None), None);
        let places = Locations::of_this_system();
        assert!(!is_root() || places.user_conf.is_none() && places.user_modules.is_none());
    }

    #[test]
    fn user_config_says_whose_modules_count() {
        let system = system();
        system.write("share/a.module", "module: /m/a.so");
        system.write("user/modules/u.module", "module: /m/u.so");
        for (system_says, user_says, expected) in [
            ("", "", &["/m/a.so", "/m/u.so"][..]),
            ("none", "only", &["/m/a.so"]),
            ("merge", "", &["/m/a.so", "/m/u.so"]),
            ("merge", "none", &["/m/a.so"]),
            ("only", "", &["/m/u.so"]),
            ("merge", "override", &["/m/u.so"]),
            ("nonsense", "", &["/m/a.so", "/m/u.so"]),
        ] {
            system.write("etc/pkcs11.conf", &format!("user-config: {system_says}"));
            system.write("user/pkcs11.conf", &format!("user-config: {user_says}"));
            assert_eq!(system.modules(), expected, "{system_says}/{user_says}");
        }
    }

    #[test]
    fn modules_for_others_and_our_own_are_left_out() {
        let system = system();
        system.write(
            "share/a.module",
            "module: /m/a.so\nenable-in: ssh, claviger",
        );
        system.write("share/b.module", "module: /m/b.so\nenable-in: ssh seahorse");
        system.write("share/c.module", "module: /m/c.so\ndisable-in: ssh");
        system.write(
            "share/d.module",
            "module: /m/d.so\ndisable-in: ssh,claviger",
        );
        system.write("share/e.module", "module: /m/e.so\ntrust-policy: yes");
        system.write("share/f.module", "remote: |ssh host");
        system.write("share/g.module", "module: /m/g.so\ntrust-policy: no");
        system.write("share/h.module", "module: libclaviger_pkcs11_module.so");
        let own = "module: /usr/lib/pkcs11/libclaviger_pkcs11_module.so";
        system.write("share/i.module", own);
        assert_eq!(system.modules(), ["/m/a.so", "/m/c.so", "/m/g.so"]);
    }
}
