# Prints the path of a Python of the version that is named, like 3.10; fails where there is none.
#
# pyenv's python3.10 answers only while that version is selected, but the versions stand beside it;
# uv knows where its own are.
shim=$(command -v "python$1")
for python in "python$1" "${shim%/*}"/../versions/"$1".*/bin/python \
	"$(pyenv root 2>/dev/null)"/versions/"$1".*/bin/python \
	"$(uv python find --no-python-downloads "$1" 2>/dev/null)"; do
	"$python" - "$1" 2>/dev/null <<'END' && exit
import ensurepip, os, sys
if sys.version_info[:2] != tuple(map(int, sys.argv[1].split("."))):
    sys.exit(1)
print(os.path.abspath(sys.executable))
END
done
exit 1
