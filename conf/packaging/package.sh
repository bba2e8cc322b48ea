#!/bin/sh
# Makes an archive and Debian packages of the programs in the directory $1, in the directory $2. "make package" calls it.
#
#   causeway-VERSION-MACHINE.tar.gz         both programs, commented configuration, units, alerts, dashboards, licence, SHA256SUMS
#   causeway-proxy_VERSION_ARCHITECTURE.deb the edge
#   causeway-node_VERSION_ARCHITECTURE.deb  a node
#   SHA256SUMS                              of these three
#
# The same programs make the same files: names are sorted, and times are those of the last commit.
set -eu

programs=$1
out=$2
top=$(cd "$(dirname "$0")/../.." && pwd)
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$top/Cargo.toml" | head -n 1)
machine=$(uname -m)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
umask 022

mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# $1 is the program, $2 the directory.
put_program() {
	mkdir -p "$2"
	cp "$programs/$1" "$2/"
	if command -v strip >/dev/null 2>&1; then strip "$2/$1"; fi
	chmod 755 "$2/$1"
}

# The checksums of all files below $1, in its SHA256SUMS.
put_checksums() {
	(cd "$1" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum >"$work/sums" && mv "$work/sums" SHA256SUMS)
}

archive() {
	name=causeway-$version-$machine-linux
	root=$work/$name
	put_program causeway-proxy "$root/bin"
	put_program causeway-node "$root/bin"
	mkdir -p "$root/conf"
	for file in README.md proxy.yaml node.yaml channels.yaml systemd prometheus grafana; do
		cp -R "$top/conf/$file" "$root/conf/"
	done
	cp "$top/LICENSE" "$top/README.md" "$root/"
	for guide in proxy node; do install -D -m 644 "$top/$guide/README.md" "$root/$guide/README.md"; done
	if [ -f "$top/CHANGELOG.md" ]; then cp "$top/CHANGELOG.md" "$root/"; fi
	put_checksums "$root"
	tar --create --directory "$work" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner "$name" |
		gzip --no-name >"$out/$name.tar.gz"
	echo "$out/$name.tar.gz"
}

# The shared libraries that the program $1 needs, as Debian packages.
libraries() {
	if command -v dpkg-shlibdeps >/dev/null 2>&1; then
		mkdir -p "$work/shlibs/debian"
		: >"$work/shlibs/debian/control"
		if (cd "$work/shlibs" && dpkg-shlibdeps -O "$1" 2>/dev/null) | sed -n 's/^shlibs:Depends=//p' | grep .; then return; fi
	fi
	echo "libc6, libgcc-s1"
}

# Who builds the packages is responsible for them: the variables are those of Debian's own tools.
if [ -z "${DEBEMAIL:-}" ]; then
	echo "DEBEMAIL is not set: the Debian packages name a maintainer that cannot be reached" >&2
fi
maintainer="${DEBFULLNAME:-The Causeway developers} <${DEBEMAIL:-unset@causeway.invalid}>"

# $1 is the package, $2 its configuration, $3 its description in one line; further ones are its units.
package() {
	name=$1 conf=$2 description=$3
	shift 3
	root=$work/$name
	put_program "$name" "$root/usr/bin"
	install -D -m 644 "$top/conf/$conf" "$root/etc/causeway/$conf"
	for unit in "$@"; do
		install -D -m 644 "$top/conf/systemd/$unit" "$root/usr/lib/systemd/system/$unit"
	done
	install -D -m 644 "$top/conf/systemd/causeway.sysusers" "$root/usr/lib/sysusers.d/$name.conf"
	doc=$root/usr/share/doc/$name
	install -D -m 644 "$top/${name#causeway-}/README.md" "$doc/README.md"
	install -m 644 "$top/LICENSE" "$doc/copyright"
	install -D -m 644 "$top/conf/prometheus/alerts.yaml" "$doc/alerts.yaml"
	install -m 644 "$top/conf/grafana/$name.json" "$doc/dashboard.json"
	mkdir "$root/DEBIAN"
	echo "/etc/causeway/$conf" >"$root/DEBIAN/conffiles"
	cat >"$root/DEBIAN/control" <<-END
		Package: $name
		Version: $version
		Architecture: $(dpkg --print-architecture)
		Maintainer: $maintainer
		Installed-Size: $(du -sk --exclude DEBIAN "$root" | cut -f 1)
		Depends: $(libraries "$root/usr/bin/$name"), systemd | adduser
		Recommends: ca-certificates
		Section: net
		Priority: optional
		Description: $description
		 The service is installed and not started: edit /etc/causeway/$conf, then
		 systemctl enable --now $name.
	END
	for script in postinst prerm postrm; do
		sed "s/@PACKAGE@/$name/g" "$top/conf/packaging/$script" >"$root/DEBIAN/$script"
		chmod 755 "$root/DEBIAN/$script"
	done
	dpkg-deb --root-owner-group --build "$root" "$out" >/dev/null
	echo "$out/${name}_${version}_$(dpkg --print-architecture).deb"
}

archive
if command -v dpkg-deb >/dev/null 2>&1; then
	package causeway-proxy proxy.yaml "edge: sticky reverse proxy for WebSocket and HTTP" causeway-proxy.service
	package causeway-node node.yaml "relay node for SockJS and WebSocket clients" causeway-node.service causeway-node@.service
else
	echo "dpkg-deb is not installed: no Debian packages" >&2
fi
(cd "$out" && sha256sum -- *"$version"*.tar.gz *"_${version}_"*.deb 2>/dev/null >SHA256SUMS || true)
echo "$out/SHA256SUMS"
