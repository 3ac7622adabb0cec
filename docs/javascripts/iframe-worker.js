// Browsers start no Worker for a page that was opened from a folder, so that its search would be dead.
// There, a hidden frame takes the worker's place: it runs the same script, and passes messages on.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      this.waiting = []
      this.frame = frame
      document.documentElement.appendChild(frame)
      const inside = frame.contentWindow
      const base = new URL(url, location.href)
      // What the script of a worker calls, and a frame has not or has otherwise.
      inside.postMessage = data => {
        this.dispatchEvent(new MessageEvent("message", { data }))
      }
      const load = path =>
        new Promise((resolve, reject) => {
          const script = inside.document.createElement("script")
          script.src = new URL(path, base)
          script.onload = resolve
          script.onerror = () => reject(new Error(`${path} cannot be loaded`))
          inside.document.head.appendChild(script)
        })
      inside.importScripts = (...paths) =>
        paths.reduce((before, path) => before.then(() => load(path)), Promise.resolve())
      load(base.href).then(() => {
        this.ready = true
        this.waiting.splice(0).forEach(data => this.postMessage(data))
      })
    }

    postMessage(data) {
      if (!this.ready) {
        this.waiting.push(data)
        return
      }
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
