-- Bodies sealed with AES-256-GCM in segments (STREAM), as they would be by someone who has nginx, LuaJIT and libcrypto.
--
-- stored := salt (32) segment*            key := HMAC-SHA-256(master, salt)
-- segment := AES-256-GCM[key](nonce, up to 64 KiB) tag (16)
-- nonce := 0 (7) number (4, big endian) last? (1)
--
-- Uploads are sealed when they are complete: nginx has no filter for request bodies that Lua could use. Downloads are
-- opened segment by segment, and a segment is passed on only when its tag was right.

local ffi = require("ffi")
local bit = require("bit")

ffi.cdef([[
typedef struct evp_cipher_ctx_st EVP_CIPHER_CTX;
typedef struct evp_cipher_st EVP_CIPHER;
typedef struct evp_md_st EVP_MD;
typedef struct engine_st ENGINE;
EVP_CIPHER_CTX *EVP_CIPHER_CTX_new(void);
const EVP_CIPHER *EVP_aes_256_gcm(void);
const EVP_MD *EVP_sha256(void);
int EVP_EncryptInit_ex(EVP_CIPHER_CTX *, const EVP_CIPHER *, ENGINE *, const unsigned char *, const unsigned char *);
int EVP_EncryptUpdate(EVP_CIPHER_CTX *, unsigned char *, int *, const unsigned char *, int);
int EVP_EncryptFinal_ex(EVP_CIPHER_CTX *, unsigned char *, int *);
int EVP_DecryptInit_ex(EVP_CIPHER_CTX *, const EVP_CIPHER *, ENGINE *, const unsigned char *, const unsigned char *);
int EVP_DecryptUpdate(EVP_CIPHER_CTX *, unsigned char *, int *, const unsigned char *, int);
int EVP_DecryptFinal_ex(EVP_CIPHER_CTX *, unsigned char *, int *);
int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *, int, int, void *);
unsigned char *HMAC(const EVP_MD *, const void *, int, const unsigned char *, size_t, unsigned char *, unsigned int *);
int RAND_bytes(unsigned char *, int);
]])

local crypto = ffi.load("libcrypto.so.3")
local SALT, TAG, SEGMENT = 32, 16, 65536
local SEALED = SEGMENT + TAG
local GET_TAG, SET_TAG = 0x10, 0x11

local M = {}
local master
local encrypt, decrypt
local nonce = ffi.new("unsigned char[12]")
local written = ffi.new("int[1]")
local opened = ffi.new("unsigned char[?]", SEGMENT)

function M.load_key(path)
  local file = assert(io.open(path, "rb"))
  master = file:read("*a")
  file:close()
  assert(#master == 32, "the master key is 32 bytes")
end

-- One of each for a worker: they keep the cipher, and each segment sets key and nonce.
local function contexts()
  if not encrypt then
    encrypt, decrypt = crypto.EVP_CIPHER_CTX_new(), crypto.EVP_CIPHER_CTX_new()
    assert(crypto.EVP_EncryptInit_ex(encrypt, crypto.EVP_aes_256_gcm(), nil, nil, nil) == 1)
    assert(crypto.EVP_DecryptInit_ex(decrypt, crypto.EVP_aes_256_gcm(), nil, nil, nil) == 1)
  end
end

local function derive(salt)
  local key = ffi.new("unsigned char[32]")
  assert(crypto.HMAC(crypto.EVP_sha256(), master, 32, salt, SALT, key, nil) ~= nil)
  return key
end

local function set_nonce(number, last)
  nonce[7] = bit.rshift(number, 24)
  nonce[8] = bit.band(bit.rshift(number, 16), 255)
  nonce[9] = bit.band(bit.rshift(number, 8), 255)
  nonce[10] = bit.band(number, 255)
  nonce[11] = last and 1 or 0
end

-- How many segments a body of so many bytes has: an empty one has one too.
local function segments(length, size)
  return math.max(1, math.ceil(length / size))
end

local function seal(body)
  contexts()
  local length = #body
  local count = segments(length, SEGMENT)
  local total = SALT + length + count * TAG
  local sealed = ffi.new("unsigned char[?]", total)
  assert(crypto.RAND_bytes(sealed, SALT) == 1)
  local key = derive(sealed)
  local from, to = ffi.cast("const unsigned char *", body), sealed + SALT
  for number = 0, count - 1 do
    local part = math.min(SEGMENT, length - number * SEGMENT)
    set_nonce(number, number == count - 1)
    assert(crypto.EVP_EncryptInit_ex(encrypt, nil, nil, key, nonce) == 1)
    if part > 0 then
      assert(crypto.EVP_EncryptUpdate(encrypt, to, written, from, part) == 1)
    end
    assert(crypto.EVP_EncryptFinal_ex(encrypt, to + part, written) == 1)
    assert(crypto.EVP_CIPHER_CTX_ctrl(encrypt, GET_TAG, TAG, to + part) == 1)
    from, to = from + part, to + part + TAG
  end
  return ffi.string(sealed, total)
end

-- One sealed segment of `length` bytes at `from`; nil if it is not genuine.
local function open(key, number, last, from, length)
  if length < TAG then
    return nil
  end
  local part = length - TAG
  set_nonce(number, last)
  assert(crypto.EVP_DecryptInit_ex(decrypt, nil, nil, key, nonce) == 1)
  if part > 0 and crypto.EVP_DecryptUpdate(decrypt, opened, written, from, part) ~= 1 then
    return nil
  end
  assert(crypto.EVP_CIPHER_CTX_ctrl(decrypt, SET_TAG, TAG, ffi.cast("void *", from + part)) == 1)
  if crypto.EVP_DecryptFinal_ex(decrypt, opened, written) ~= 1 then
    return nil
  end
  return ffi.string(opened, part)
end

-- access phase
function M.request()
  local method = ngx.req.get_method()
  if method ~= "PUT" and method ~= "POST" then
    return
  end
  ngx.req.read_body()
  local body = ngx.req.get_body_data()
  if not body then
    local path = ngx.req.get_body_file()
    if path then
      local file = assert(io.open(path, "rb"))
      body = file:read("*a")
      file:close()
    end
  end
  ngx.req.set_body_data(seal(body or ""))
end

-- header filter phase
function M.response_head()
  local method = ngx.req.get_method()
  if ngx.status ~= 200 or (method ~= "GET" and method ~= "HEAD") then
    return
  end
  local length = tonumber(ngx.header.content_length)
  if length then
    if length < SALT + TAG then
      ngx.header.content_length = nil
    else
      ngx.header.content_length = length - SALT - segments(length - SALT, SEALED) * TAG
    end
  end
  if method == "GET" then
    ngx.ctx.opening = { number = 0, have = 0, buffer = ffi.new("unsigned char[?]", SEALED) }
  end
end

-- Takes what it can of the salt. Gives what is left, from and length.
local function take_salt(state, from, length)
  local part = math.min(SALT - state.have, length)
  ffi.copy(state.buffer + state.have, from, part)
  state.have = state.have + part
  if state.have == SALT then
    state.key = derive(state.buffer)
    state.have = 0
  end
  return from + part, length - part
end

-- body filter phase
function M.response_body()
  local state = ngx.ctx.opening
  if not state then
    return
  end
  contexts()
  local chunk, eof = ngx.arg[1], ngx.arg[2]
  local from, length = ffi.cast("const unsigned char *", chunk), #chunk
  if not state.key then
    from, length = take_salt(state, from, length)
  end
  local out, outs = {}, 0
  local function release(last, source, size)
    local plain = open(state.key, state.number, last, source, size)
    if not plain then
      ngx.log(ngx.ERR, "a stored body does not open")
      return false
    end
    state.number = state.number + 1
    outs = outs + 1
    out[outs] = plain
    return true
  end
  -- A full segment is opened once something follows it: only then it is known not to be the last.
  while length > 0 do
    if state.have == SEALED then
      if not release(false, state.buffer, SEALED) then
        return ngx.ERROR
      end
      state.have = 0
    end
    if state.have == 0 and length > SEALED then
      if not release(false, from, SEALED) then
        return ngx.ERROR
      end
      from, length = from + SEALED, length - SEALED
    else
      local part = math.min(SEALED - state.have, length)
      ffi.copy(state.buffer + state.have, from, part)
      state.have = state.have + part
      from, length = from + part, length - part
    end
  end
  if eof then
    if not state.key or not release(true, state.buffer, state.have) then
      return ngx.ERROR
    end
    ngx.ctx.opening = nil
  end
  ngx.arg[1] = outs == 1 and out[1] or table.concat(out)
end

return M
