//! What the driver needs on this machine: the modules that p11-kit is configured for.

use std::collections::HashSet;

use claviger_token::needs::Need;

use crate::modules::Locations;

/// A need for each module. Whether it loads shows when its tokens are looked for.
pub(crate) fn of(locations: &Locations) -> Vec<Need> {
    let mut modules = locations.configured();
    // Several configuration files may name one module.
    let mut seen = HashSet::new();
    modules.retain(|module| seen.insert(module.path.clone()));
    let need = |module: &crate::modules::Configured| {
        let what = format!("the PKCS#11 module {}", module.path.display());
        Need::new(what, module.backend()).configured()
    };
    modules.iter().map(need).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_token::needs::Reach;

    #[test]
    fn each_module_that_p11_kit_knows_is_needed_once() {
        let root = tempfile::tempdir().unwrap();
        let locations = Locations {
            package_modules: root.path().into(),
            ..Locations::default()
        };
        for (name, path) in [("a", "/m/a.so"), ("b", "/m/b.so"), ("c", "/m/a.so")] {
            let file = root.path().join(format!("{name}.module"));
            std::fs::write(file, format!("module: {path}\n")).unwrap();
        }
        let needs = of(&locations);
        let shown: Vec<_> = needs
            .iter()
            .map(|need| (need.what.as_str(), need.backend.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                ("the PKCS#11 module /m/a.so", "pkcs11:?module-name=a"),
                ("the PKCS#11 module /m/b.so", "pkcs11:?module-name=b"),
            ]
        );
        let is_expected = |need: &Need| need.reach == Reach::Configured && need.missing.is_none();
        assert!(needs.iter().all(is_expected), "{needs:?}");
        assert!(of(&Locations::default()).is_empty());
    }
}
