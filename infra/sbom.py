"""Bills of materials of images, as CycloneDX.

sbom.py BOM FOLDER             adds Debian's packages to a bill that is there; FOLDER has a file of dpkg's fields for each.
sbom.py BOM FOLDER NAME PATH   writes the bill of the image NAME, with those packages and what is below PATH: programs of Go by the
                               modules that they name, Java's archives by what Maven wrote into them or by their names, other files by
                               the Debian package of this machine that owns them. A file that no package owns is left out.
"""

import json
import pathlib
import re
import subprocess
import sys
import zipfile


def component(purl, name, version):
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def debian(text):
    fields = dict(line.split(": ", 1) for line in text.splitlines() if line[:1].isalpha() and ": " in line)
    name, version = fields["Package"], fields["Version"]
    return component(f"pkg:deb/debian/{name}@{version}?arch={fields['Architecture']}", name, version)


def output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout


def of_go(program):
    """The modules of a program, where it is one of Go."""
    for line in output("go", "version", "-m", str(program)).splitlines():
        kind, *words = line.split() or [""]
        if kind in ("mod", "dep") and len(words) > 1:
            yield component(f"pkg:golang/{words[0]}@{words[1]}", words[0], words[1])


def of_files(files):
    """Debian's packages that own these files of this machine, wherever `/usr` was merged."""
    paths = [path for file in files for path in (str(file), re.sub("^/usr/", "/", str(file)), f"/usr{file}")]
    packages = set()
    for start in range(0, len(paths), 500):
        found = output("dpkg-query", "--search", *paths[start : start + 500]).splitlines()
        owners = [line.split(": /")[0] for line in found if ": /" in line and not line.startswith("diversion ")]
        packages |= {name for names in owners for name in names.split(", ")}
    for package in sorted(packages):
        yield debian(output("dpkg-query", "--status", package))


def of_jar(file):
    """An archive of Java, by what Maven wrote into it, or by its name."""
    with zipfile.ZipFile(file) as jar:
        poms = [name for name in jar.namelist() if re.fullmatch("META-INF/maven/.+/pom.properties", name)]
        text = jar.read(poms[0]).decode() if len(poms) == 1 else ""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    if fields.keys() >= {"groupId", "artifactId", "version"}:
        name, version = fields["artifactId"], fields["version"]
        return component(f"pkg:maven/{fields['groupId']}/{name}@{version}", name, version)
    name, _, version = re.fullmatch(r"(.+?)(-(\d.*))?", file.stem).groups()
    return component(f"pkg:generic/{name}@{version or 'unknown'}", name, version or "unknown")


def of_part(path):
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink()) if path.is_dir() else [path]
    for file in files:
        if file.suffix == ".jar":
            yield of_jar(file)
    if path.is_dir():
        yield from of_files([pathlib.Path("/") / file.relative_to(path) for file in files])
        for release in (file for file in files if file.name == "release"):
            version = re.search('^JAVA_RUNTIME_VERSION="(.+)"', release.read_text(), re.MULTILINE)
            if version:
                yield component(f"pkg:generic/openjdk@{version[1]}", "openjdk", version[1])
    else:
        yield from of_go(path)


bom, packages, rest = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
if rest:
    image = {"type": "container", "bom-ref": rest[0], "name": rest[0]}
    content = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": image}, "components": []}
    content["components"] += [one for path in rest[1:] for one in of_part(pathlib.Path(path))]
else:
    content = json.loads(bom.read_text())
there = {one["bom-ref"]: one for one in content["components"]}
for package in sorted(packages.iterdir()):
    one = debian(package.read_text())
    there.setdefault(one["bom-ref"], one)
content["components"] = list(there.values())
bom.write_text(json.dumps(content, indent=1) + "\n")
