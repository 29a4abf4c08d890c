# Sourced by the checks of the CPU kernels, in the project's root: how they are built apart from the installed ones, and tested.

# build_kernels FOLDER PYTHON...: into FOLDER, with CXX and CXXFLAGS; FOLDER/path is then the project with these kernels
build_kernels() {
    local folder=$1
    shift
    CORRIGENDA_BUILD=cpu "$@" setup.py -q build_ext --build-lib "$folder/built" --build-temp "$folder/objects"
    mkdir -p "$folder/path/corrigenda"
    ln -s "$PWD"/{editing,serving} "$folder/path/corrigenda/"
    cp -r kernels "$folder/path/corrigenda/"
    cp "$folder/built/corrigenda/kernels/_C.so" "$folder/path/corrigenda/kernels/"
}

# test_kernels FOLDER PYTHON...: every op's tests of the native backend, in every instruction set that runs here
test_kernels() {
    local folder=$1
    shift
    PYTHONPATH="$folder/path" OMP_NUM_THREADS=1 "$@" -m pytest -q -p no:cacheprovider -k native \
        tests/kernels/test_{topk_mask,mask_overlap,mask_route,token_overlap,nearest_key,masked_linear,associative_read,adapter_linear,ties_merge,masked_sgd,delta_linear,label_losses}.py
}
