//! What the packages carry besides the programs: systemd units that systemd accepts and finds well sandboxed, and containers whose
//! configuration the programs accept.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{programs, scratch::Scratch};
use serde_json::Value;
use tokio::process::Command;

const UNITS: [&str; 3] = [
    "causeway-proxy.service",
    "causeway-node.service",
    "causeway-node@.service",
];

/// The highest exposure that `systemd-analyze security` may find, of 100.
const EXPOSURE_MAX: &str = "20";

fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf")
}

fn unit(name: &str) -> Result<String> {
    let path = conf().join("systemd").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Runs `systemd-analyze`, if this machine has it, and returns what it printed.
async fn systemd_analyze(arguments: &[&str]) -> Result<String> {
    let Ok(program) = programs::installed(&["systemd-analyze"]) else {
        eprintln!("systemd-analyze is not installed: {arguments:?} is not checked");
        return Ok(String::new());
    };
    let mut command = Command::new(program);
    let output = command.args(arguments).kill_on_drop(true).output().await?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}\n{text}");
    Ok(text.into_owned())
}

#[tokio::test]
async fn systemd_accepts_the_units_and_finds_them_well_sandboxed() -> Result<()> {
    let scratch = Scratch::new("units")?;
    let programs = programs::ours("causeway-proxy")?;
    let programs = programs.parent().context("the program is in a folder")?;
    for name in UNITS {
        // The programs are not installed on this machine.
        let text = unit(name)?.replace("/usr/bin", &programs.display().to_string());
        let file = scratch.write(name, &text)?.display().to_string();
        let instance = file.replace('@', "@n1");
        if instance != file {
            fs::copy(&file, &instance)?;
        }
        // Misspelled settings are warnings alone.
        let warnings = systemd_analyze(&["verify", "--man=no", &instance]).await?;
        ensure!(warnings.is_empty(), "{warnings}");
        let threshold = format!("--threshold={EXPOSURE_MAX}");
        systemd_analyze(&["security", "--offline=true", &threshold, &instance]).await?;
    }
    Ok(())
}

#[test]
fn the_template_of_nodes_differs_from_their_unit_in_the_file_names_alone() -> Result<()> {
    let without_comments = |text: String| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    let template = unit("causeway-node@.service")?;
    let template = template
        .replace("node-%i", "node")
        .replace("node %i", "node");
    assert_eq!(
        without_comments(template),
        without_comments(unit("causeway-node.service")?)
    );
    Ok(())
}

fn container(file: &str) -> Result<String> {
    let path = conf().join("container").join(file);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn yaml(text: &str) -> Result<Value> {
    Ok(serde_yaml::from_str(text)?)
}

fn strings(list: &Value) -> Vec<&str> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).collect()
}

/// Runs `program --check` on the file that `service` of `compose.yaml` mounts, with its environment.
async fn check_mounted(service: &Value, program: &str, file: &str) -> Result<()> {
    let mount = format!("./{file}:/etc/causeway/{file}:ro");
    ensure!(
        strings(&service["volumes"]) == [mount.as_str()],
        "{service}"
    );
    let mut command = Command::new(programs::ours(program)?);
    let variables = service["environment"].as_object();
    for (name, value) in variables.into_iter().flatten() {
        let value = value.as_str().context("variables are strings")?;
        // `${NAME:-default}` is what it is where nobody sets NAME.
        let default = value.split_once(":-").map(|(_, rest)| rest);
        let value = default.map_or(value, |rest| rest.trim_end_matches('}'));
        command.env(name, value);
    }
    let file = conf().join("container").join(file);
    command.arg("--config").arg(file).arg("--check");
    let output = command.kill_on_drop(true).output().await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && errors.is_empty(), "{errors}");
    Ok(())
}

#[tokio::test]
async fn containers_have_no_rights_and_a_configuration_that_the_programs_accept() -> Result<()> {
    let compose = yaml(&container("compose.yaml")?)?;
    let services = compose["services"].as_object().context("it has services")?;
    for (name, service) in services {
        ensure!(service["read_only"] == true, "{name}");
        ensure!(strings(&service["cap_drop"]) == ["ALL"], "{name}");
    }
    check_mounted(&services["proxy"], "causeway-proxy", "proxy.yaml").await?;
    let edge = yaml(&container("proxy.yaml")?)?;
    let node = yaml(&container("node.yaml")?)?;
    let backends = edge["pools"][0]["backends"].as_array();
    for backend in backends.context("the edge has backends")? {
        let id = backend["id"].as_str().context("a backend has an id")?;
        let service = services.get(id).with_context(|| id.to_owned())?;
        check_mounted(service, "causeway-node", "node.yaml").await?;
        ensure!(service["hostname"] == id, "{service}");
        ensure!(backend["address"] == format!("{id}:9000"), "{backend}");
    }
    // Nodes believe the edge.
    let address = &services["proxy"]["networks"]["default"]["ipv4_address"];
    ensure!(node["trusted_proxies"][0] == *address, "{address}");
    Ok(())
}

#[test]
fn the_images_that_containers_are_made_from_ask_for_their_health_where_the_programs_respond()
-> Result<()> {
    let text = container("Containerfile")?;
    for program in ["proxy", "node"] {
        let stage = text.split("\nFROM ");
        let stage = { stage.into_iter() }
            .find(|stage| stage.starts_with(&format!("base AS {program}\n")))
            .with_context(|| format!("no stage {program}"))?;
        let conf = yaml(&container(&format!("{program}.yaml"))?)?;
        let address = conf["admin"]["address"].as_str();
        let port = address.and_then(|address| address.rsplit(':').next());
        let health = format!("http://127.0.0.1:{}/live", port.context("a port")?);
        ensure!(stage.contains(&health), "{health}: {stage}");
        let entry = format!("ENTRYPOINT [\"/usr/bin/causeway-{program}\"]");
        ensure!(stage.contains(&entry), "{entry}: {stage}");
    }
    Ok(())
}

/// Packages of programs that do nothing: what else is in them does not depend on ours.
async fn packages(scratch: &Scratch) -> Result<PathBuf> {
    let (programs, out) = (scratch.path().join("programs"), scratch.path().join("out"));
    fs::create_dir(&programs)?;
    for name in ["causeway-proxy", "causeway-node"] {
        fs::copy(programs::installed(&["true"])?, programs.join(name))?;
    }
    let mut command = Command::new("sh");
    command
        .arg(conf().join("packaging/package.sh"))
        .args([&programs, &out]);
    command.env("DEBEMAIL", "packages@example.org");
    let output = command.kill_on_drop(true).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    Ok(out)
}

/// What `program` prints in the directory `folder`.
async fn printed(program: &str, arguments: &[&str], folder: &Path) -> Result<String> {
    let mut command = Command::new(programs::installed(&[program])?);
    command.args(arguments).current_dir(folder);
    let output = command.kill_on_drop(true).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The file in `folder` whose name begins and ends so.
fn file_in(folder: &Path, start: &str, end: &str) -> Result<String> {
    let names =
        fs::read_dir(folder)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names = names.filter(|name| name.starts_with(start) && name.ends_with(end));
    names.next().with_context(|| format!("no {start}...{end}"))
}

#[tokio::test]
async fn the_archive_has_all_that_its_checksums_name_and_configuration_that_is_valid() -> Result<()>
{
    let scratch = Scratch::new("archive")?;
    let out = packages(&scratch).await?;
    let archive = file_in(&out, "causeway-", ".tar.gz")?;
    printed("tar", &["xf", &archive], &out).await?;
    let folder = out.join(archive.trim_end_matches(".tar.gz"));
    printed("sha256sum", &["--check", "--strict", "SHA256SUMS"], &folder).await?;
    for file in [
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "bin/causeway-proxy",
        "bin/causeway-node",
        "conf/proxy.yaml",
        "conf/node.yaml",
        "conf/README.md",
        "conf/systemd/causeway-proxy.service",
        "conf/prometheus/alerts.yaml",
        "conf/grafana/causeway-node.json",
        "proxy/README.md",
        "node/README.md",
    ] {
        ensure!(folder.join(file).is_file(), "{file}");
    }
    Ok(())
}

#[tokio::test]
async fn the_debian_packages_have_program_units_configuration_and_scripts() -> Result<()> {
    if programs::installed(&["dpkg-deb"]).is_err() {
        eprintln!("dpkg-deb is not installed: there are no Debian packages to look into");
        return Ok(());
    }
    let scratch = Scratch::new("packages")?;
    let out = packages(&scratch).await?;
    printed("sha256sum", &["--check", "--strict", "SHA256SUMS"], &out).await?;
    for (name, file) in [
        ("causeway-proxy", "proxy.yaml"),
        ("causeway-node", "node.yaml"),
    ] {
        let package = file_in(&out, name, ".deb")?;
        printed("dpkg-deb", &["--raw-extract", &package, name], &out).await?;
        let root = out.join(name);
        for file in [
            format!("usr/bin/{name}"),
            format!("usr/lib/systemd/system/{name}.service"),
            format!("usr/lib/sysusers.d/{name}.conf"),
            format!("etc/causeway/{file}"),
            format!("usr/share/doc/{name}/README.md"),
            format!("usr/share/doc/{name}/copyright"),
        ] {
            ensure!(root.join(&file).is_file(), "{file}");
        }
        let conffiles = fs::read_to_string(root.join("DEBIAN/conffiles"))?;
        ensure!(
            conffiles == format!("/etc/causeway/{file}\n"),
            "{conffiles}"
        );
        for script in ["postinst", "prerm", "postrm"] {
            printed("sh", &["-n", &format!("{name}/DEBIAN/{script}")], &out).await?;
            let text = fs::read_to_string(root.join("DEBIAN").join(script))?;
            ensure!(!text.contains("@PACKAGE@"), "{text}");
        }
    }
    Ok(())
}
