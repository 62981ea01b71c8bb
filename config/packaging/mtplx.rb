# Homebrew's formula, filled in by config/packaging/release.sh: blocks of targets of which there is no
# archive go, and words between @ are replaced.
class Mtplx < Formula
  desc "Server of large language models for teams, with native speculative decoding"
  homepage "@HOMEPAGE@"
  version "@VERSION@"
  license "Apache-2.0"

  on_macos do
    on_arm do # begin aarch64-apple-darwin
      url "@URL@/mtplx-@VERSION@-aarch64-apple-darwin.tar.gz"
      sha256 "@SHA256:aarch64-apple-darwin@"
    end # end aarch64-apple-darwin
    depends_on macos: :sonoma
  end

  on_linux do
    on_intel do # begin x86_64-unknown-linux-gnu
      url "@URL@/mtplx-@VERSION@-x86_64-unknown-linux-gnu.tar.gz"
      sha256 "@SHA256:x86_64-unknown-linux-gnu@"
    end # end x86_64-unknown-linux-gnu
    on_arm do # begin aarch64-unknown-linux-gnu
      url "@URL@/mtplx-@VERSION@-aarch64-unknown-linux-gnu.tar.gz"
      sha256 "@SHA256:aarch64-unknown-linux-gnu@"
    end # end aarch64-unknown-linux-gnu
  end

  def install
    # Its libraries are looked for beside it, so they stay together.
    libexec.install "bin", "lib"
    bin.write_exec_script libexec/"bin/mtplx"
    man1.install "share/man/man1/mtplx.1"
    bash_completion.install "share/completions/mtplx.bash" => "mtplx"
    zsh_completion.install "share/completions/_mtplx"
    fish_completion.install "share/completions/mtplx.fish"
    prefix.install "README.md", "LICENSE", "NOTICE", "THIRD-PARTY.txt"
  end

  service do
    run [opt_bin/"mtplx", "serve"]
    keep_alive true
    log_path var/"log/mtplx.log"
    error_log_path var/"log/mtplx.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/mtplx --version")
    assert_match "bytes", shell_output("#{bin}/mtplx plan --context 512 --clients 1 --json")
  end
end
